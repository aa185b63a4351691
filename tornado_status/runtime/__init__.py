"""The process: shutdown, systemd, blocking calls, DNS, log output, rate-limited logs.

Also accepting connections, listening errors and HTTP time-outs.
"""
