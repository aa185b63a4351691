"""The followed log: its first event, and the change to another log. Pure."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Callable
from typing import Literal

from listeners.events import Source
from listeners.order.log_tracker import LogStatus, LogTracker
from listeners.order.retry_timer import Rng
from listeners.order.sequence import EventSequence, Position
from tornado_status.errors import DatagramError
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.wire.datagram import Datagram

Start = int | Literal["now", "start", "snapshot"]

MAX_UNCONFIRMED = 8  # logs that the server has not confirmed, of which the first number is kept


class UnconfirmedLog(DatagramError):
    """The datagram is of a log that only the server can confirm."""


class LogFollower:
    """Puts the events of the log that is followed into `sequence`.

    A saved position (`resumed`) comes before `start`. `pinned` is the only log that may be
    followed. With `repairs` the server confirms a log before it is followed.
    """

    def __init__(
        self,
        *,
        start: Start,
        pinned: uuid.UUID | None,
        resumed: Position | None,
        repairs: bool,
        window_s: float | None,
        warn: Callable[[str], None],
        rng: Rng = random.random,
    ) -> None:
        self._start = start
        self._pinned = pinned
        self._resumed = resumed
        self._repairs = repairs
        self._window_s = window_s
        self._warn = warn
        self._rng = rng
        self._first_unconfirmed = BoundedDict[uuid.UUID, int](MAX_UNCONFIRMED)
        self.sequence: EventSequence
        self._tracker: LogTracker
        self._reset()

    def _reset(self) -> None:
        self.sequence = EventSequence(repairs=self._repairs, rng=self._rng, window_s=self._window_s)
        self._tracker = LogTracker(pinned=self._pinned, confirms=self._repairs)

    def give_up_repairs(self) -> None:
        """Go on without a server. Only before anything was received."""
        self._repairs = False
        self._reset()

    def take_up_repairs(self) -> None:
        """Repair, and follow only a log that the server confirms: a server has answered."""
        self._repairs = self.sequence.repairs = self._tracker.confirms = True

    def resume(self, utc: datetime.datetime, now: float) -> None:
        """Go on at the saved position, if there is one and no server that knows better."""
        if self._repairs or self._resumed is None:
            return
        # Another log must be newer than this moment, or a replay could bring back an old one.
        self._tracker.follow(self._resumed.log_id, utc)
        self.sequence.begin(self._resumed.log_id, self._resumed.seq, 0, now)

    def allows(self, log_id: uuid.UUID) -> bool:
        """Return whether a log that the server names may be followed."""
        return self._tracker.allows(log_id)

    def receive(self, datagram: Datagram, source: Source, now: float) -> None:
        """Add a verified datagram. Raises `DatagramError` if its log is not followed.

        That is `UnconfirmedLog` if the server can confirm the log.
        """
        log_id = datagram.log_id
        first = min((event.seq for event in datagram.updates), default=datagram.head + 1)
        match self._tracker.check(log_id, datagram.sent):
            case LogStatus.UNCONFIRMED:
                known = self._first_unconfirmed.get(log_id, first)
                self._first_unconfirmed[log_id] = min(first, known)
                raise UnconfirmedLog("log", f"its log {log_id} is not confirmed by the server")
            case LogStatus.REFUSED:
                raise DatagramError("log", f"its log {log_id} is not the one that is followed")
            case LogStatus.NEW:
                self._follow_announced(datagram, first, now)
            case LogStatus.FOLLOWED:
                pass
        self.sequence.receive(datagram.head, datagram.updates, source, now, datagram.repeated)

    def _follow_announced(self, datagram: Datagram, first: int, now: float) -> None:
        """Follow a log because its announcer signed it, or because the operator pinned it."""
        log_id, before = datagram.log_id, self._tracker.followed
        self._tracker.follow(log_id, datagram.sent)
        if before is None and self._resumed is None:
            self._begin(log_id, head=datagram.head, now_after=first - 1, now=now)
            return
        if before is None and self._resumed is not None:
            resumed = self._resumed
            if resumed.log_id == log_id:
                self.sequence.begin(log_id, resumed.seq, datagram.head, now)
                return
            self.sequence.begin(resumed.log_id, resumed.seq, 0, now)
        self._warn(f"a new log begins: {log_id}")
        self.sequence.restart(log_id, first - 1, now)

    def begin_confirmed(self, log_id: uuid.UUID, head: int, now: float) -> None:
        """Follow the first log that the server names. It must be one that `allows` lets pass."""
        self._tracker.follow(log_id)
        resumed = self._resumed
        if resumed is not None:
            self.sequence.begin(resumed.log_id, resumed.seq, head, now)
            if resumed.log_id != log_id or resumed.seq > head:
                self.sequence.restart(log_id, 0, now)
            return
        first = self._first_unconfirmed.get(log_id, head + 1)
        self._first_unconfirmed.clear()
        self._begin(log_id, head=head, now_after=min(head, first - 1), now=now)

    def follow_confirmed(self, log_id: uuid.UUID, now: float) -> bool:
        """Follow a log that the server names, and return whether it is another one than before.

        It must be one that `allows` lets pass.
        """
        if log_id == self._tracker.followed:
            return False
        self._warn(f"a new log begins: {log_id}")
        self._tracker.follow(log_id)
        self.sequence.restart(log_id, 0, now)
        return True

    def _begin(self, log_id: uuid.UUID, *, head: int, now_after: int, now: float) -> None:
        """Begin as `start` says; for "now" that is after the number `now_after`."""
        match self._start:
            case "snapshot" if self._repairs:
                self.sequence.begin_with_snapshot(log_id)
                return
            case "now" | "snapshot":
                after = now_after
            case "start":
                after = 0
            case number:
                after = number - 1
        self.sequence.begin(log_id, after, head, now)
