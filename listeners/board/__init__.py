"""The terminal board: all users in a live table (extra `board`)."""
