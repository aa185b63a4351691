"""How a check-in gets in: TLS, accepting, handshakes, and who the peer of a connection is."""

from tornado_status.ingress.acceptor import Acceptor, bind
from tornado_status.ingress.contexts import server_context
from tornado_status.ingress.peer import Judge, peer_of

__all__ = ["Acceptor", "Judge", "bind", "peer_of", "server_context"]
