"""A check-in service: a certificate is the identity, PostgreSQL remembers, the network hears.

The parts, in the order in which a check-in passes them: `ingress`, `identity`, `store`,
`announce`; `server` puts them together and `cli` starts it. Nothing happens at import.
"""

__version__ = "0.1.0"
