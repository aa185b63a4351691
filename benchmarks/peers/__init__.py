"""The servers that are compared: `registry` says how each runs, the rest is their source."""
