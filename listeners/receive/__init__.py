"""Receiving datagrams: UDP sockets, a NATS broker, and a fair queue before verification."""
