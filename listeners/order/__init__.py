"""Order: which log is followed, every number once, gaps found, the position saved."""
