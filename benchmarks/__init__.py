"""Compares the server with others that do the same job: `python -m benchmarks`."""
