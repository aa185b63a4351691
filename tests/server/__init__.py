"""One server and its PostgreSQL, on loopback."""
