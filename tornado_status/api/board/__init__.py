"""The board: one page for readers, with all its files."""
