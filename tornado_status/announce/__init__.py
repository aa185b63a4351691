"""Announcing: sockets, brokers and targets. The bytes come from `wire.datagram`."""

from tornado_status.announce.announcer import Announcer
from tornado_status.announce.publication import Publication

__all__ = ["Announcer", "Publication"]
