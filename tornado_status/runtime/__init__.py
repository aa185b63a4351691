"""The process: shutdown, blocking calls, DNS, HTTP time-outs, systemd, rate-limited logs."""
