"""How a check-in gets in: TLS, accepting, who the peer is, and the check-in connection."""

from tornado_status.ingress.acceptor import bind
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.behind_proxy.shared_connection import ClientCache
from tornado_status.ingress.connection import CheckInService
from tornado_status.ingress.port import CheckInPort
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import Trust
from tornado_status.ingress.trusted_proxies import TrustedProxies

__all__ = [
    "CheckInPort",
    "CheckInService",
    "ClientCache",
    "Refusals",
    "RequestAuthenticator",
    "Trust",
    "TrustedProxies",
    "bind",
]
