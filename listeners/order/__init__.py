"""Order: every number once, gaps found, the position kept in a state file."""
