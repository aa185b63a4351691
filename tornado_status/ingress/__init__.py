"""How a check-in gets in: TLS, accepting, who the peer is, and the check-in connection."""

from tornado_status.ingress.accepting import Accepting, bind
from tornado_status.ingress.acceptor import Acceptor
from tornado_status.ingress.connection import Answers, CheckInService
from tornado_status.ingress.contexts import server_context
from tornado_status.ingress.peer import Judge
from tornado_status.ingress.plain import PlainAcceptor
from tornado_status.ingress.proxied import ProxiedJudge
from tornado_status.ingress.proxies import TrustedProxies
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.reload import FileWatcher, self_test
from tornado_status.ingress.shared_connection import SharedConnection, Speakers
from tornado_status.ingress.stream import READ_CHUNK, PeerStream, PlainStream, quick_stream_class
from tornado_status.ingress.trust import Anchors, Trust, load_anchors

__all__ = [
    "READ_CHUNK",
    "Accepting",
    "Acceptor",
    "Anchors",
    "Answers",
    "CheckInService",
    "FileWatcher",
    "Judge",
    "PeerStream",
    "PlainAcceptor",
    "PlainStream",
    "ProxiedJudge",
    "Refusals",
    "SharedConnection",
    "Speakers",
    "Trust",
    "TrustedProxies",
    "bind",
    "load_anchors",
    "quick_stream_class",
    "self_test",
    "server_context",
]
