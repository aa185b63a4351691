"""Ingress: TLS, accepting, authentication, and the check-in connection."""

from tornado_status.ingress.check_in_acceptor import bind
from tornado_status.ingress.port import CheckInPort
from tornado_status.ingress.trust import Trust

__all__ = ["CheckInPort", "Trust", "bind"]
