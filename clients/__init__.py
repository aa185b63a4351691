"""Checks in: once, or again and again. The certificate is the identity.

`check_in` is the library part: a connection that checks in. `heartbeat` says when to do it again.
`cli` is the command line; the bash scripts beside it do the same with curl. Standard library only.
"""
