"""Repair: what was missed, fetched from the server over HTTPS."""
