"""Certificates and keys: reading, verifying, CRLs, TLS contexts, reload."""
