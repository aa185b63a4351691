"""The process: shutdown, blocking calls, DNS, HTTP timeouts, systemd, rate-limited logs."""
