"""The followed log: its first event, and the change to another log. Pure."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Callable, Iterable
from typing import Literal

from listeners.events import Source
from listeners.order.held_datagrams import HeldDatagrams, first_number
from listeners.order.log_tracker import LogStatus, LogTracker
from listeners.order.retry_timer import Rng
from listeners.order.sequence import EventSequence, Position
from tornado_status.errors import DatagramError
from tornado_status.model.records import LogSpan, common_head
from tornado_status.runtime.bounded_dict import BoundedDict
from tornado_status.wire.datagram import Datagram

Start = int | Literal["now", "start", "snapshot"]

MAX_LEFT = 16  # logs that were left for one that goes on from them
# A server that names such a log has not connected to the new primary yet, or is cut off with the
# old one. It is believed once the followed log has been silent for so long: then an operator has
# chosen the old primary.
BEHIND_S = 60.0


class LogFollower:
    """Puts the events of the log that is followed into `sequence`.

    A saved position (`resumed`) comes before `start`. `pinned` is the only log that may be
    followed. With `repairs` the server confirms a log before it is followed: `on_unconfirmed` is
    called for a datagram of another one. Datagrams of a log that is not followed yet are held.
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
        on_unconfirmed: Callable[[], None],
        rng: Rng = random.random,
    ) -> None:
        self._start = start
        self._pinned = pinned
        self._resumed = resumed
        self._repairs = repairs
        self._window_s = window_s
        self._warn = warn
        self._on_unconfirmed = on_unconfirmed
        self._rng = rng
        self._held = HeldDatagrams()
        self._left = BoundedDict[uuid.UUID, None](MAX_LEFT)
        self._heard_at = float("-inf")  # the followed log, or its first moment
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

    def is_behind(self, log_id: uuid.UUID, now: float) -> bool:
        """Return whether a server that names this log has not learned yet that it went on."""
        return log_id in self._left and now < self._heard_at + BEHIND_S

    def wake_at(self) -> float | None:
        """Return when `sequence.due_fetch` or `expire` may have work without new input."""
        moments = (self.sequence.wake_at(), None if self._repairs else self._held.wake_at())
        return min((moment for moment in moments if moment is not None), default=None)

    def expire(self, now: float) -> bool:
        """Without repairs, report what did not come in time; return whether there was anything.

        That is a missing event, or the heartbeat that says how another log began.
        """
        found = False
        while not self._repairs and (log_id := self._held.overdue(now)) is not None:
            found = True
            first, datagrams = self._held.take(log_id)
            sent = max(datagram.sent for datagram, _ in datagrams)
            if self._tracker.check(log_id, sent) is LogStatus.NEW:
                self._restart(log_id, sent, first - 1, now)
                self._receive_all(datagrams, now)
        return self.sequence.expire(now) or found

    def receive(self, datagram: Datagram, source: Source, now: float) -> None:
        """Add a verified datagram. Raises `DatagramError` if its log cannot be followed."""
        log_id = datagram.log_id
        match self._tracker.check(log_id, datagram.sent):
            case LogStatus.FOLLOWED:
                self._heard_at = now
                self._receive_all([(datagram, source)], now)
            case LogStatus.UNCONFIRMED:
                self._on_unconfirmed()
                if not self._held.hold(datagram, source, now):
                    raise DatagramError("log", f"its log {log_id} is not confirmed by the server")
            case LogStatus.NEW:
                if self._goes_on(datagram, now) or self._begins(datagram, source, now):
                    self._receive_held(datagram, source, now)
            case LogStatus.OLDER:
                if not self._goes_on(datagram, now):
                    raise _not_followed(log_id)
                self._receive_held(datagram, source, now)
            case LogStatus.REFUSED:
                raise _not_followed(log_id)

    def _goes_on(self, datagram: Datagram, now: float) -> bool:
        """Follow another log if this heartbeat says that it goes on from the followed one."""
        parent = datagram.parent
        if parent is None or self._position_log() != parent.parent:
            return False
        if self._tracker.followed is None:
            self._begin_resumed(now)
        self._tracker.follow(datagram.log_id, datagram.sent)
        self._go_on(datagram.log_id, parent.fork, now)
        return True

    def _begins(self, datagram: Datagram, source: Source, now: float) -> bool:
        """Follow a log because its announcer signed it, or because the operator pinned it.

        Return False if the datagram is held until it is known how the log began.
        """
        log_id = datagram.log_id
        before = self._position_log()
        if before is None:
            self._tracker.follow(log_id, datagram.sent)
            first = first_number(datagram)
            self._begin(log_id, head=datagram.head, now_after=first - 1, now=now)
            return True
        if before == log_id:
            self._tracker.follow(log_id, datagram.sent)
            self._begin_resumed(now)
            return True
        # Only a heartbeat says how the log began.
        if datagram.updates and self._held.hold(datagram, source, now):
            return False
        if self._tracker.followed is None:
            self._begin_resumed(now)
        first = first_number(datagram)
        known = self._held.first(log_id)
        first = first if known is None else min(first, known)
        self._restart(log_id, datagram.sent, first - 1, now)
        return True

    def _position_log(self) -> uuid.UUID | None:
        """Return the log of the position: the followed one, or the saved one before that."""
        if self._tracker.followed is None and self._resumed is not None:
            return self._resumed.log_id
        return self._tracker.followed

    def _begin_resumed(self, now: float) -> None:
        if self._resumed is not None:
            self.sequence.begin(self._resumed.log_id, self._resumed.seq, 0, now)

    def _restart(
        self, log_id: uuid.UUID, sent: datetime.datetime | None, after: int, now: float
    ) -> None:
        self._warn(f"a new log begins: {log_id}")
        self._tracker.follow(log_id, sent)
        self.sequence.restart(log_id, after, now)

    def _go_on(self, log_id: uuid.UUID, common: int, now: float) -> None:
        if (before := self.sequence.log_id) is not None:
            self._left[before] = None
        self._heard_at = now
        self._warn(f"the log goes on from number {common} as {log_id}")
        self.sequence.go_on(log_id, common, now)

    def _receive_held(self, datagram: Datagram, source: Source, now: float) -> None:
        """Add the datagrams of a log that is followed from now on."""
        _, datagrams = self._held.take(datagram.log_id)
        self._receive_all([*datagrams, (datagram, source)], now)

    def _receive_all(self, datagrams: Iterable[tuple[Datagram, Source]], now: float) -> None:
        for datagram, source in datagrams:
            self.sequence.receive(datagram.head, datagram.updates, source, now, datagram.repeated)

    def begin_confirmed(self, log: LogSpan, now: float) -> None:
        """Follow the first log that the server names. It must be one that `allows` lets pass."""
        log_id, resumed = log.log_id, self._resumed
        first, datagrams = self._held.take(log_id)
        self._tracker.follow(log_id)
        if resumed is None:
            after = min(log.head, first - 1) if datagrams else log.head
            self._begin(log_id, head=log.head, now_after=after, now=now)
        else:
            self._begin_resumed(now)
            if resumed.log_id != log_id or resumed.seq > log.head:
                self._move(log, now)
            self.sequence.note_head(log.head, now)
        self._receive_all(datagrams, now)

    def follows(self, log_id: uuid.UUID) -> bool:
        """Return whether this log is followed."""
        return log_id == self._tracker.followed

    def follow_confirmed(self, log: LogSpan, now: float) -> None:
        """Follow another log that the server names. It must be one that `allows` lets pass."""
        _, datagrams = self._held.take(log.log_id)
        # The log that went on may be heard again, if the server of the old one is wrong after all.
        self._tracker.follow(log.log_id, for_good=log.log_id not in self._left)
        self._move(log, now)
        self.sequence.note_head(log.head, now)
        self._receive_all(datagrams, now)

    def _move(self, log: LogSpan, now: float) -> None:
        """Take the position over to another log, as its lineage says."""
        before = self.sequence.log_id
        common = None if before is None else common_head(log.lineage, before)
        if common is None:
            self._restart(log.log_id, None, 0, now)
        else:
            self._go_on(log.log_id, common, now)

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


def _not_followed(log_id: uuid.UUID) -> DatagramError:
    return DatagramError("log", f"its log {log_id} is not the one that is followed")
