"""Repair: missed events and the announcers, fetched from the server over HTTPS."""
