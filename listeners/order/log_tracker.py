"""Which stream is followed, and what it takes to follow another. Pure."""

from __future__ import annotations

import datetime
import enum
import uuid

from listeners.order.lru_set import Window

MAX_RETIRED = 1024  # streams that were left, never to be followed again


class Verdict(enum.Enum):
    """What a verified datagram's stream is."""

    FOLLOWED = "followed"
    NEW = "new"  # to be followed from now on
    UNCONFIRMED = "unconfirmed"  # ask the server, and ignore the datagram
    REFUSED = "refused"


class Streams:
    """Pinned to one stream, confirmed by the server, or trusted on first use.

    Without a server to ask, another stream is followed once a datagram of it is *newer* than every
    datagram of the one that is followed: nobody but an announcer could sign it. None is followed
    again that was left: a server that was cut off may go on announcing it.
    """

    def __init__(self, *, pinned: uuid.UUID | None = None, confirms: bool = False) -> None:
        self._pinned = pinned
        self._confirms = confirms
        self._retired = Window[uuid.UUID](MAX_RETIRED)
        self._newest: datetime.datetime | None = None
        self.followed: uuid.UUID | None = None

    def judge(self, log_id: uuid.UUID, sent: datetime.datetime) -> Verdict:
        """Judge the stream of a verified datagram. After NEW the caller follows it."""
        if log_id == self.followed:
            if self._newest is None or sent > self._newest:
                self._newest = sent
            return Verdict.FOLLOWED
        if self._pinned is not None:
            return Verdict.NEW if log_id == self._pinned else Verdict.REFUSED
        if log_id in self._retired:
            return Verdict.REFUSED
        if self._confirms:
            return Verdict.UNCONFIRMED
        if self._newest is not None and sent <= self._newest:
            return Verdict.REFUSED
        return Verdict.NEW

    def allows(self, log_id: uuid.UUID) -> bool:
        """Whether a stream that the server names may be followed."""
        return self._pinned is None or log_id == self._pinned

    def follow(self, log_id: uuid.UUID, sent: datetime.datetime | None = None) -> None:
        """Follow a stream from now on; leave the one before for good."""
        if self.followed is not None and self.followed != log_id:
            self._retired.add(self.followed)
        self.followed = log_id
        self._newest = sent
