"""How a check-in gets in: TLS, accepting, who the peer is, and the check-in connection."""

from tornado_status.ingress.acceptor import Acceptor, bind
from tornado_status.ingress.connection import Answers, CheckInService
from tornado_status.ingress.contexts import server_context
from tornado_status.ingress.peer import Judge
from tornado_status.ingress.reload import FileWatcher, self_test
from tornado_status.ingress.stream import READ_CHUNK, PeerStream, quick_stream_class
from tornado_status.ingress.trust import Anchors, Trust, load_anchors

__all__ = [
    "READ_CHUNK",
    "Acceptor",
    "Anchors",
    "Answers",
    "CheckInService",
    "FileWatcher",
    "Judge",
    "PeerStream",
    "Trust",
    "bind",
    "load_anchors",
    "quick_stream_class",
    "self_test",
    "server_context",
]
