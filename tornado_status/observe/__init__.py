"""Observing the server: the management port, metrics, health, traces and logs."""
