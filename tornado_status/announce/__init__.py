"""How an update gets out: sockets and targets. The bytes come from `tornado_status.datagram`."""

from tornado_status.announce.announcer import Announcer

__all__ = ["Announcer"]
