"""Shared by servers and listeners: the datagram codec, and connections to a NATS broker."""
