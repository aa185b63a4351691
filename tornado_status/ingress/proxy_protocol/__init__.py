"""The PROXY protocol, version 2, in front of TLS: the header, and reading it from a socket."""
