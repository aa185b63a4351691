"""The followed log, and the evidence for changing to another. Pure."""

from __future__ import annotations

import datetime
import enum
import uuid

from listeners.order.bounded_set import BoundedSet

MAX_RETIRED = 1024  # logs that were left, never to be followed again


class LogStatus(enum.Enum):
    """How the log of a verified datagram relates to the one that is followed."""

    FOLLOWED = "followed"
    NEW = "new"  # to be followed from now on
    OLDER = "older"  # than the followed log: to be followed only if it goes on from that
    UNCONFIRMED = "unconfirmed"  # ask the server
    REFUSED = "refused"


class LogTracker:
    """Pinned to one log, confirmed by the server, or trusted on first use.

    Without a server to ask, another log is followed if a heartbeat says that it goes on from the
    followed one. It is also followed once a datagram of it is *newer* than every datagram of the
    followed log. Only an announcer can sign that. A log that was left is never
    followed again, because a server that was cut off may go on announcing it.
    """

    def __init__(self, *, pinned: uuid.UUID | None = None, confirms: bool = False) -> None:
        self._pinned = pinned
        self.confirms = confirms
        self._retired = BoundedSet[uuid.UUID](MAX_RETIRED)
        self._newest: datetime.datetime | None = None
        self.followed: uuid.UUID | None = None

    def check(self, log_id: uuid.UUID, sent: datetime.datetime) -> LogStatus:
        """Return the status of a verified datagram's log. After NEW the caller follows it."""
        if log_id == self.followed:
            if self._newest is None or sent > self._newest:
                self._newest = sent
            return LogStatus.FOLLOWED
        if self._pinned is not None:
            return LogStatus.NEW if log_id == self._pinned else LogStatus.REFUSED
        if log_id in self._retired:
            return LogStatus.REFUSED
        if self.confirms:
            return LogStatus.UNCONFIRMED
        if self._newest is not None and sent <= self._newest:
            return LogStatus.OLDER
        return LogStatus.NEW

    def allows(self, log_id: uuid.UUID) -> bool:
        """Return whether a log that the server names may be followed."""
        return self._pinned is None or log_id == self._pinned

    def follow(
        self, log_id: uuid.UUID, sent: datetime.datetime | None = None, *, for_good: bool = True
    ) -> None:
        """Follow a log from now on, and leave the one before; `for_good`: never to return to it."""
        if self.followed is not None and self.followed != log_id and for_good:
            self._retired.add(self.followed)
        self._retired.discard(log_id)
        self.followed = log_id
        self._newest = sent
