"""Tests: real TLS, real PostgreSQL, real UDP."""
