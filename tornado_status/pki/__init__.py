"""Certificates and keys: reading, judging, revocation, TLS contexts, reload."""
