"""Helpers for the tests: the real server as a process, clients, hosts, PostgreSQL, proxies."""
