"""The embedded PostgreSQL: a child of this process, reachable through a Unix socket only."""
