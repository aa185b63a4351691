"""The servers that are compared, one a folder: `peer.py` says how it runs, the rest is it."""
