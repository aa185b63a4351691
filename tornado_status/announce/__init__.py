"""How an update gets out: sockets and targets. The bytes come from `wire.datagram`."""

from tornado_status.announce.announcer import Announcer
from tornado_status.announce.signing import Publication, Signing, load_signing

__all__ = ["Announcer", "Publication", "Signing", "load_signing"]
