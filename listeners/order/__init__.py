"""Order: the followed log, each number once, gaps, and the saved position."""
