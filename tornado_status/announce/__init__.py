"""Announcing: sockets, brokers and targets. The bytes come from `wire.datagram`."""

from tornado_status.announce.announcer import Announcer
from tornado_status.announce.group_key_keeper import GroupKeyKeeper, reader_hash
from tornado_status.announce.publication import Publication

__all__ = ["Announcer", "GroupKeyKeeper", "Publication", "reader_hash"]
