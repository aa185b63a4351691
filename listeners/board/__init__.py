"""The terminal board: everybody in a live table (extra `board`)."""
