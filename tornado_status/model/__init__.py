"""Values without I/O: check-ins and events, presence, e-mail patterns, the check-in rate limit."""
