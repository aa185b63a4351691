"""How a check-in gets in: TLS, accepting, who the peer is, and the check-in connection."""

from tornado_status.ingress.acceptor import Acceptor, bind
from tornado_status.ingress.connection import READ_CHUNK, Answers, CheckInService
from tornado_status.ingress.contexts import server_context
from tornado_status.ingress.peer import Judge, peer_of
from tornado_status.ingress.stream import PeerStream, quick_stream_class

__all__ = [
    "READ_CHUNK",
    "Acceptor",
    "Answers",
    "CheckInService",
    "Judge",
    "PeerStream",
    "bind",
    "peer_of",
    "quick_stream_class",
    "server_context",
]
