"""How an update gets out: sockets and targets. The bytes come from `tornado_status.datagram`."""

from tornado_status.announce.announcer import Announcer
from tornado_status.announce.signing import keep_published, load_signing

__all__ = ["Announcer", "keep_published", "load_signing"]
