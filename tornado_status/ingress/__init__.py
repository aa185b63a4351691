"""How a check-in gets in: TLS, accepting, who the peer is, and the check-in connection."""

from tornado_status.ingress.accepting import bind
from tornado_status.ingress.connection import CheckInService
from tornado_status.ingress.contexts import server_context
from tornado_status.ingress.port import CheckInPort
from tornado_status.ingress.proxied import ProxiedJudge
from tornado_status.ingress.proxies import TrustedProxies
from tornado_status.ingress.reload import FileWatcher, self_test
from tornado_status.ingress.shared_connection import Speakers
from tornado_status.ingress.trust import Anchors, Trust, load_anchors

__all__ = [
    "Anchors",
    "CheckInPort",
    "CheckInService",
    "FileWatcher",
    "ProxiedJudge",
    "Speakers",
    "Trust",
    "TrustedProxies",
    "bind",
    "load_anchors",
    "self_test",
    "server_context",
]
