"""Every number once and in order: duplicates, the reorder window, and what to fetch. Pure.

A state machine: the caller puts in what was received or fetched, with the time, and takes out
deliveries. `due_fetch` says what to ask the server for. No sockets, no clock, no random numbers.

Memory is bounded. An update that finds no room is dropped, and fetched again once there is room.
"""

from __future__ import annotations

import enum
import math
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from listeners.events import Delivery, Gap, Rollback, Snapshot, Source, Update
from listeners.order.retry_timer import RetryTimer, Rng
from tornado_status.model.records import Event, EventPage, StatusRecord, UserPage

# Datagrams of several servers, or by several paths, overtake each other by milliseconds.
WINDOW_S = 0.1
# A gap that cannot be repaired is final once it is reported: wait longer.
REPORT_WINDOW_S = 1.0
# When a number was first known to exist is kept as the end of such a part of the window.
TICKS = 8  # of a window
MAX_SEEN = 8 * TICKS  # parts: more than a window has; while a server is away, all are overdue
MAX_PENDING = 20_000  # updates, about 10 MB: a third of a second at the highest rate of a database
PAGE = 1000  # events or records a request: up to half a megabyte


@dataclass(frozen=True, slots=True)
class FetchEvents:
    """Ask for up to `limit` events with numbers above `after`."""

    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class FetchUsers:
    """Ask for a page of all users' records: the first, or the one at `path`."""

    path: str | None


Fetch = FetchEvents | FetchUsers


@dataclass(frozen=True, slots=True)
class Position:
    """The number up to which everything of a log was delivered."""

    log_id: uuid.UUID
    seq: int


class _Reason(enum.Enum):
    """Why a snapshot is wanted."""

    START = enum.auto()  # to begin with it: nothing before it was missed
    NEW_LOG = enum.auto()  # of which nothing is known
    ROLLBACK = enum.auto()  # its updates follow from where the log goes on
    GONE = enum.auto()  # the server does not keep what is missing


@dataclass(slots=True)
class SequenceCounts:
    """Updates of one `EventSequence`, by their fate."""

    duplicates: int = 0
    healed: int = 0  # updates that a later datagram repeated
    repaired: int = 0  # updates that were fetched
    missed: int = 0  # numbers reported in gaps


class EventSequence:
    """The events of one log, from a position on.

    With `repairs` missing events are fetched, else they become a `Gap`; it may be set later. The
    caller says which log it follows: `begin` the first time, `go_on` or `restart` when another log
    takes its place.
    """

    def __init__(
        self,
        *,
        repairs: bool,
        rng: Rng,
        window_s: float | None = None,
        max_pending: int = MAX_PENDING,
        page: int = PAGE,
    ) -> None:
        self.counts = SequenceCounts()
        self.repairs = repairs
        self._given_window_s = window_s
        self._max_pending = max_pending
        self._page = max(1, min(page, max_pending // 2))
        self._retry = RetryTimer(rng)
        self.log_id: uuid.UUID | None = None
        self.position: Position | None = None
        self.head = 0
        self._delivered = 0  # the newest number of this log that was handed out
        self._complete_to = 0  # every number from delivered + 1 to here is pending
        self._pending: dict[int, Update | Gap] = {}
        # Deliveries that come before all that is pending, each with the position it leads to.
        self._first_out: deque[tuple[Delivery, Position | None]] = deque()
        self._gap_since: float | None = None
        # Numbers, each with the time since when all numbers up to it are known to exist.
        self._seen: deque[tuple[int, float]] = deque(maxlen=MAX_SEEN)
        self._fetch_to = 0  # fetch up to here without another wait for the window
        # A snapshot: wanted (its first page has not come), or under way.
        self._snapshot_wanted: _Reason | None = None
        self._snapshot_at: int | None = None
        self._snapshot_next: str | None = None
        self._snapshot_records: deque[StatusRecord] = deque()
        self._gone_after = 0

    @property
    def _window_s(self) -> float:
        return self._given_window_s or (WINDOW_S if self.repairs else REPORT_WINDOW_S)

    # -------------------------------------------------------------------------------- position

    def begin(self, log_id: uuid.UUID, after: int, head: int, now: float) -> None:
        """Deliver from `after` + 1 on; `head` is the newest number that is known."""
        self.log_id = log_id
        self.position = Position(log_id, after)
        self._delivered = self._complete_to = self.head = after
        self._see(head, now)
        self._check_for_gap(now)

    def begin_with_snapshot(self, log_id: uuid.UUID) -> None:
        """Deliver the records of all users first, then what follows. Only with repairs."""
        self.log_id = log_id
        self._want_snapshot(_Reason.START)

    def go_on(self, log_id: uuid.UUID, common: int, now: float) -> None:
        """Follow another log, which has the events of this one up to the number `common`.

        The events above are lost. If some of them were delivered, that is a rollback.
        """
        before = self.position
        if before is not None and before.log_id == self.log_id and before.seq <= common:
            self.position = Position(log_id, before.seq)
        for number, (delivery, leads_to) in enumerate(self._first_out):
            if leads_to is not None and leads_to.log_id == self.log_id and leads_to.seq <= common:
                self._first_out[number] = (delivery, Position(log_id, leads_to.seq))
        self.log_id = log_id
        self._forget_above(common)
        if self._delivered > common:
            position = None if self.repairs else Position(log_id, common)
            lost = Rollback(common + 1, self._delivered, log_id)
            self._first_out.append((lost, position))
            self._delivered = common
            if self.repairs:
                self._want_snapshot(_Reason.ROLLBACK)
        self._see(common, now)
        self._gap_since = None
        self._advance(now)

    def restart(self, log_id: uuid.UUID, after: int, now: float) -> None:
        """Follow another log: its events so far are a gap.

        With repairs a snapshot is fetched and `after` is not used. Without repairs delivery goes
        on from `after` + 1.
        """
        self._keep_complete()
        self._pending.clear()
        self.log_id = log_id
        self._delivered = self._complete_to = self.head = 0
        self._gap_since = None
        self._seen.clear()
        self._fetch_to = 0
        if self.repairs:
            self._want_snapshot(_Reason.NEW_LOG)
        else:
            self._first_out.append((Gap(1, after, log_id), Position(log_id, after)))
            self._delivered = self._complete_to = self.head = after

    @property
    def lag(self) -> int:
        """The count of numbers that are known to exist and not delivered."""
        return max(0, self.head - self._delivered) + len(self._first_out)

    def __len__(self) -> int:
        return len(self._pending) + len(self._first_out) + len(self._snapshot_records)

    # -------------------------------------------------------------------------------------- input

    def receive(
        self,
        head: int,
        events: Iterable[Event],
        source: Source,
        now: float,
        repeated: Iterable[Event] = (),
    ) -> None:
        """Add the events of a verified datagram of the log that is followed."""
        for event in events:
            self._add(event, source)
            self._see(event.seq, now)
        for event in repeated:
            if self._add(event, source, repeated=True):
                self.counts.healed += 1
            self._see(event.seq, now)
        self._see(head, now)
        self._advance(now)

    def note_head(self, head: int, now: float) -> None:
        """Note that the log has all numbers up to `head`."""
        self._see(head, now)
        self._advance(now)

    def receive_page(self, asked: FetchEvents, page: EventPage, now: float) -> bool:
        """Add a page of events. False: it contradicts what is known, ask again later.

        The page is gapless and begins at `asked.after` + 1, or it is empty at its head. It must be
        of the log that is followed: see `restart`.
        """
        if not page.events and self.head > asked.after:
            self._retry.failed(now)
            return False
        self._retry.succeeded()
        for event in page.events:
            if self._add(event, None):
                self.counts.repaired += 1
        self._see(page.head, now)
        self._advance(now)
        return True

    def events_gone(self, asked: FetchEvents) -> None:
        """Begin again from a snapshot: the server keeps no events after that number (410)."""
        self._retry.succeeded()
        if self._snapshot_wanted is None:
            self._gone_after = asked.after
            self._want_snapshot(_Reason.GONE)

    def receive_users(
        self, asked: FetchUsers, page: UserPage, following: str | None, now: float
    ) -> None:
        """Add a page of records of the log that is followed; `following` is the next page."""
        self._retry.succeeded()
        if asked.path is None:
            reason, self._snapshot_wanted = self._snapshot_wanted, None
            if reason is None or (reason is _Reason.GONE and self._gap_closed(page.head)):
                return
            self._open_snapshot(reason, page.head, now)
        elif asked.path != self._snapshot_next:
            return
        if (snapshot_at := self._snapshot_at) is not None:
            # The update of a newer record comes later.
            self._snapshot_records.extend(r for r in page.users if r.seq <= snapshot_at)
        self._snapshot_next = following

    def fetch_failed(self, now: float, retry_after_s: float | None = None) -> float:
        """Note that the server gave no answer. Returns the seconds until the fetch is due again."""
        return self._retry.failed(now, retry_after_s)

    # ------------------------------------------------------------------------------------- output

    def next_delivery(self) -> Delivery | None:
        """Return the next delivery, or None while it is not known."""
        if self._first_out:
            delivery, position = self._first_out.popleft()
            if isinstance(delivery, Gap):
                self.counts.missed += max(0, delivery.last - delivery.first + 1)
            self.position = position or self.position
            return delivery
        if self._is_held_up():
            return None
        if self._snapshot_at is not None:
            if self._snapshot_records:
                return Snapshot(self._snapshot_records.popleft())
            if self._snapshot_next is not None:
                return None
            self._set_position(self._snapshot_at)
            self._snapshot_at = None
        found = self._pending.pop(self._delivered + 1, None)
        if found is None:
            return None
        if isinstance(found, Gap):
            self.counts.missed += found.last - found.first + 1
            self._delivered = found.last
        else:
            self._delivered += 1
        self._set_position(self._delivered)
        return found

    def due_fetch(self, now: float) -> Fetch | None:
        """Return what to ask the server for now. The caller sends one request at a time."""
        fetch = self._next_fetch()
        if fetch is None or now < self._fetch_at():
            return None
        return fetch

    def wake_at(self) -> float | None:
        """Return when `due_fetch` or `expire` may have work without new input."""
        if self.repairs:
            return None if self._next_fetch() is None else self._fetch_at()
        return None if self._gap_since is None else self._gap_since + self._window_s

    def expire(self, now: float) -> bool:
        """Report what did not come within the window as gaps, without repairs.

        The window of each number begins when it is first known to exist. Returns whether there was
        a gap.
        """
        if self.repairs or self._gap_since is None or now < self._gap_since + self._window_s:
            return False
        due = max(last for last, since in self._seen if now >= since + self._window_s)
        first = self._complete_to + 1
        for seq in sorted(seq for seq in self._pending if first <= seq <= due):
            self._report(first, seq - 1)
            first = seq + 1
        self._report(first, due)
        self._advance(now)
        return True

    # ---------------------------------------------------------------------------------- internals

    def _report(self, first: int, last: int) -> None:
        if first <= last:
            self._pending[first] = Gap(first, last)

    def _see(self, head: int, now: float) -> None:
        """Note that all numbers up to `head` exist."""
        if head <= self.head:
            return
        self.head = head
        tick_s = self._window_s / TICKS
        since = max(now, math.ceil(now / tick_s) * tick_s)
        if self._seen and self._seen[-1][1] >= since:
            since = self._seen.pop()[1]
        self._seen.append((head, since))

    def _seen_since(self, seq: int, now: float) -> float:
        """Return since when a number is known to exist. Forget that of the numbers below it."""
        while self._seen and self._seen[0][0] < seq:
            self._seen.popleft()
        return self._seen[0][1] if self._seen else now

    def _add(self, event: Event, source: Source | None, *, repeated: bool = False) -> bool:
        seq = event.seq
        if seq <= self._complete_to or seq in self._pending:
            self.counts.duplicates += source is not None and not repeated
            return False
        # Fetched events close the gap that the others wait for: a page of room is kept for them.
        reserved = 0 if source is None else self._page
        if len(self._pending) + len(self._first_out) >= self._max_pending - reserved:
            return False
        self._pending[seq] = Update(event, source)
        return True

    def _advance(self, now: float) -> None:
        if self._is_held_up():
            return
        before = self._complete_to
        while (found := self._pending.get(self._complete_to + 1)) is not None:
            self._complete_to = found.last if isinstance(found, Gap) else self._complete_to + 1
        if self._complete_to != before:
            self._gap_since = None
        self._check_for_gap(now)

    def _check_for_gap(self, now: float) -> None:
        if self._complete_to >= self.head:
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = self._seen_since(self._complete_to + 1, now)
            if self.repairs and self._complete_to >= self._fetch_to:
                self._retry.begin(self._gap_since + self._window_s)

    def _next_fetch(self) -> Fetch | None:
        if not self.repairs or self.log_id is None:
            return None
        if self._snapshot_wanted is not None:
            return FetchUsers(None)
        if self._snapshot_at is not None and self._snapshot_next is not None:
            # Fetch the next page once this one is delivered: never more than one is in memory.
            if self._snapshot_records or self._first_out:
                return None
            return FetchUsers(self._snapshot_next)
        room = self._max_pending - len(self._pending) - len(self._first_out)
        if self._gap_since is None or room < (self._page + 1) // 2:
            return None
        return FetchEvents(self._complete_to, min(self._page, room, self.head - self._complete_to))

    def _fetch_at(self) -> float:
        wanted = self._snapshot_wanted is not None
        if self._gap_since is None or wanted or self._complete_to < self._fetch_to:
            return self._retry.not_before
        return max(self._retry.not_before, self._gap_since + self._window_s)

    def fetch_started(self, fetch: Fetch) -> None:
        """Note that this request is sent. All that is known to be missing is fetched in one go."""
        if isinstance(fetch, FetchEvents) and self._complete_to >= self._fetch_to:
            self._fetch_to = self.head

    def _want_snapshot(self, reason: _Reason) -> None:
        self._snapshot_wanted = reason
        self._snapshot_at = self._snapshot_next = None
        self._snapshot_records.clear()

    def _is_held_up(self) -> bool:
        """Return whether the snapshot that is wanted says where the updates go on."""
        return self._snapshot_wanted not in (None, _Reason.GONE)

    def _gap_closed(self, head: int) -> bool:
        """Return whether datagrams have closed the gap in the meantime."""
        return self._gone_after <= head <= self._complete_to

    def _open_snapshot(self, reason: _Reason, head: int, now: float) -> None:
        at = head
        match reason:
            case _Reason.START:
                pass
            case _Reason.NEW_LOG:
                self._first_out.append((Gap(1, head, self.log_id), None))
            case _Reason.ROLLBACK:
                at = self._delivered
            case _Reason.GONE:
                first = self._complete_to + 1
                self._keep_complete()
                self._first_out.append((Gap(first, head), None))
                if head < self._complete_to:
                    self._pending.clear()  # the numbers went back: these are of another history
                    self._seen.clear()
                    self.head = head
        self._pending = {seq: entry for seq, entry in self._pending.items() if seq > at}
        self._snapshot_at = at
        self._delivered = self._complete_to = at
        self._see(head, now)
        self._fetch_to = 0
        self._gap_since = None
        self._advance(now)

    def _forget_above(self, common: int) -> None:
        """Forget the events above a number, and that there are any."""
        kept: dict[int, Update | Gap] = {}
        for seq, entry in self._pending.items():
            if seq <= common:
                kept[seq] = Gap(seq, min(entry.last, common)) if isinstance(entry, Gap) else entry
        self._pending = kept
        seen = [(min(end, common), since) for end, since in self._seen]
        self._seen.clear()
        for end, since in seen:
            if not self._seen or self._seen[-1][0] < end:
                self._seen.append((end, since))
        self.head = min(self.head, common)
        self._complete_to = min(self._complete_to, common)
        self._fetch_to = min(self._fetch_to, common)

    def _keep_complete(self) -> None:
        if self.log_id is None:
            return
        for seq in range(self._delivered + 1, self._complete_to + 1):
            found = self._pending.pop(seq, None)
            if found is not None:
                last = found.last if isinstance(found, Gap) else seq
                self._first_out.append((found, Position(self.log_id, last)))

    def _set_position(self, seq: int) -> None:
        if self.log_id is not None:
            self.position = Position(self.log_id, seq)
