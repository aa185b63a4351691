"""Checks in: once, or as a heartbeat. The certificate is the identity.

`https` is the HTTPS client, which `listeners` uses too. `check_in` sends a check-in over it.
`heartbeat` says when the next check-in is due. `cli` is the command line. The bash scripts beside
it do the same with curl. Standard library only.
"""
