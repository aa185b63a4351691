"""Every number once and in order: duplicates, the reorder window, and what to fetch. Pure.

A state machine: what was heard or fetched goes in with the moment it came, deliveries are taken
out, and `wish` says what to ask the server for. No sockets, no clock, no chance of its own.

Everything it holds is bounded. What finds no room is dropped, and missing: repaired later, once
there is room.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from listeners.events import Delivery, Gap, Snapshot, Source, Update
from listeners.order.backoff import Chance, Pace
from tornado_status.model.records import Event, EventPage, StatusRecord, UserPage

# Datagrams of several servers, or by several paths, overtake each other by milliseconds.
WINDOW_S = 0.1
# Where a gap cannot be repaired it cannot be taken back either: wait longer before it is told.
REPORT_WINDOW_S = 1.0
MAX_HELD = 20_000  # updates, about 10 MB: a third of a second at the highest rate of a database
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
    """The number up to which everything of a stream was delivered."""

    log_id: uuid.UUID
    seq: int


@dataclass(slots=True)
class Counts:
    duplicates: int = 0
    repaired: int = 0  # updates that were fetched
    missed: int = 0  # numbers reported in gaps
    overflowed: int = 0  # updates dropped for want of room, to be repaired


class Sequence:
    """One stream, from a position on.

    With `repairs` what is missing is wished for, else it becomes a `Gap`. The caller says which
    stream it follows: `begin` the first time, `restart` when another one takes its place.
    """

    def __init__(
        self,
        *,
        repairs: bool,
        chance: Chance,
        window_s: float | None = None,
        max_held: int = MAX_HELD,
        page: int = PAGE,
    ) -> None:
        self.counts = Counts()
        self.repairs = repairs
        self._chance = chance
        self._window_s = window_s or (WINDOW_S if repairs else REPORT_WINDOW_S)
        self._max_held = max_held
        self._page = max(1, min(page, max_held // 2))
        self._pace = Pace(chance)
        self.log_id: uuid.UUID | None = None
        self.position: Position | None = None
        self.head = 0
        self._taken = 0  # the newest number of this stream that was handed out
        self._reach = 0  # all of taken + 1 to reach are held
        self._held: dict[int, Update | Gap] = {}
        # To be taken before all that is held, each with the position that it leads to.
        self._before: deque[tuple[Delivery, Position | None]] = deque()
        self._gap_since: float | None = None
        self._goal = 0  # fetch up to here without waiting for the window once more
        # A snapshot: wanted (its first page is awaited), or under way.
        self._snapshot_wanted = False
        self._snapshot_at: int | None = None
        self._snapshot_next: str | None = None
        self._snapshot_records: deque[StatusRecord] = deque()
        self._gone_after: int | None = None
        self._new_stream = False
        self._first_look = False  # a snapshot to begin with: nothing before it was missed

    # ------------------------------------------------------------------------------ where it is

    def begin(self, log_id: uuid.UUID, after: int, head: int, now: float) -> None:
        """Deliver from `after` + 1 on; `head` is the newest number that is known."""
        self.log_id = log_id
        self.position = Position(log_id, after)
        self._taken = self._reach = after
        self.head = max(after, head)
        self._look_for_gap(now)

    def begin_with_snapshot(self, log_id: uuid.UUID) -> None:
        """Deliver everybody's record first, then what follows it. Only with repairs."""
        self.log_id = log_id
        self._want_snapshot(None)
        self._new_stream = self._first_look = True

    def restart(self, log_id: uuid.UUID, after: int, now: float) -> None:
        """Follow another stream: what it had before is a gap.

        With repairs a snapshot is wished for, and `after` is not used; else delivery goes on from
        `after` + 1.
        """
        self._keep_what_is_next()
        self._held.clear()
        self.log_id = log_id
        self._taken = self._reach = self.head = 0
        self._gap_since = None
        self._goal = 0
        if self.repairs:
            self._want_snapshot(None)
            self._new_stream = True
        else:
            self._before.append((Gap(1, after, log_id), Position(log_id, after)))
            self._taken = self._reach = self.head = after

    @property
    def lag(self) -> int:
        """How many numbers are known to exist and not delivered."""
        return max(0, self.head - self._taken) + len(self._before)

    def __len__(self) -> int:
        return len(self._held) + len(self._before) + len(self._snapshot_records)

    # -------------------------------------------------------------------------------- coming in

    def hear(self, head: int, events: Iterable[Event], source: Source, now: float) -> None:
        """Take in a verified datagram of the stream that is followed."""
        for event in events:
            self._hold(event, source)
            self.head = max(self.head, event.seq)
        self.head = max(self.head, head)
        self._advance(now)

    def page(self, asked: FetchEvents, page: EventPage, now: float) -> bool:
        """Take in what the server answered. False: it contradicts what is known, ask again later.

        The page is gapless and begins at `asked.after` + 1, or it is empty at its head. It must be
        of the stream that is followed: see `restart`.
        """
        if not page.events and self.head > asked.after:
            self._pace.failed(now)
            return False
        self._pace.succeeded()
        for event in page.events:
            if self._hold(event, None):
                self.counts.repaired += 1
        if page.head > self.head:
            self.head = page.head
        self._advance(now)
        return True

    def gone(self, asked: FetchEvents) -> None:
        """The server keeps no events after that number (410): begin again from a snapshot."""
        self._pace.succeeded()
        if not self._snapshot_wanted:
            self._want_snapshot(asked.after)

    def users(self, asked: FetchUsers, page: UserPage, following: str | None, now: float) -> None:
        """Take in a page of records, of the stream that is followed; `following` continues it."""
        self._pace.succeeded()
        if asked.path is None:
            if not self._snapshot_wanted:
                return
            self._snapshot_wanted = False
            if self._closed_itself(page.head):
                return
            self._open_snapshot(page.head, now)
        elif asked.path != self._snapshot_next:
            return
        if (snapshot_at := self._snapshot_at) is not None:
            # A newer record is of a number that is yet to come.
            self._snapshot_records.extend(r for r in page.users if r.seq <= snapshot_at)
        self._snapshot_next = following

    def failed(self, now: float, retry_after_s: float | None = None) -> float:
        """The server gave no answer. Returns in how many seconds the wish comes back."""
        return self._pace.failed(now, retry_after_s)

    # ------------------------------------------------------------------------------- going out

    def take(self) -> Delivery | None:
        """Return what is next to deliver, or None while that is not known."""
        if self._before:
            delivery, position = self._before.popleft()
            if isinstance(delivery, Gap):
                self.counts.missed += max(0, delivery.last - delivery.first + 1)
            self.position = position or self.position
            return delivery
        if self._snapshot_wanted and self._new_stream:
            return None  # where the numbers begin is not known yet
        if self._snapshot_at is not None:
            if self._snapshot_records:
                return Snapshot(self._snapshot_records.popleft())
            if self._snapshot_next is not None:
                return None
            self._at(self._snapshot_at)
            self._snapshot_at = None
        found = self._held.pop(self._taken + 1, None)
        if found is None:
            return None
        if isinstance(found, Gap):
            self.counts.missed += found.last - found.first + 1
            self._taken = found.last
        else:
            self._taken += 1
        self._at(self._taken)
        return found

    def wish(self, now: float) -> Fetch | None:
        """Return what to ask the server for now. The caller asks one thing at a time."""
        wish = self._wish()
        if wish is None or now < self._wish_at():
            return None
        return wish

    def wake_at(self) -> float | None:
        """Return when `wish` or `expire` may have something without anything coming in."""
        if self.repairs:
            return None if self._wish() is None else self._wish_at()
        return None if self._gap_since is None else self._gap_since + self._window_s

    def expire(self, now: float) -> bool:
        """Without repairs: report what did not come within the window as a gap. False: nothing."""
        if self.repairs or self._gap_since is None or now < self._gap_since + self._window_s:
            return False
        first = self._reach + 1
        last = min((seq for seq in self._held if seq > self._reach), default=self.head + 1) - 1
        self._held[first] = Gap(first, last)
        self._advance(now)
        return True

    # ------------------------------------------------------------------------------------- inside

    def _hold(self, event: Event, source: Source | None) -> bool:
        seq = event.seq
        if seq <= self._reach or seq in self._held:
            self.counts.duplicates += source is not None
            return False
        # What is fetched closes the gap that the rest waits for, so it always has a page's room.
        reserved = 0 if source is None else self._page
        if len(self._held) + len(self._before) >= self._max_held - reserved:
            self.counts.overflowed += source is not None
            return False
        self._held[seq] = Update(event, source)
        return True

    def _advance(self, now: float) -> None:
        if self._snapshot_wanted and self._new_stream:
            return
        before = self._reach
        while (found := self._held.get(self._reach + 1)) is not None:
            self._reach = found.last if isinstance(found, Gap) else self._reach + 1
        if self._reach != before:
            self._gap_since = None
        self._look_for_gap(now)

    def _look_for_gap(self, now: float) -> None:
        if self._reach >= self.head:
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now
            if self.repairs and self._reach >= self._goal:
                self._pace.begin(now + self._window_s)

    def _wish(self) -> Fetch | None:
        if not self.repairs or self.log_id is None:
            return None
        if self._snapshot_wanted:
            return FetchUsers(None)
        if self._snapshot_at is not None and self._snapshot_next is not None:
            # The next page when this one is taken: never more than one is held.
            if self._snapshot_records or self._before:
                return None
            return FetchUsers(self._snapshot_next)
        room = self._max_held - len(self._held) - len(self._before)
        if self._gap_since is None or room < (self._page + 1) // 2:
            return None
        return FetchEvents(self._reach, min(self._page, room, self.head - self._reach))

    def _wish_at(self) -> float:
        if self._gap_since is None or self._snapshot_wanted or self._reach < self._goal:
            return self._pace.not_before
        return max(self._pace.not_before, self._gap_since + self._window_s)

    def asking(self, wish: Fetch) -> None:
        """The caller sends this request now: what is known to be missing is fetched in one go."""
        if isinstance(wish, FetchEvents) and self._reach >= self._goal:
            self._goal = self.head

    def _want_snapshot(self, gone_after: int | None) -> None:
        self._snapshot_wanted = True
        self._snapshot_at = self._snapshot_next = None
        self._snapshot_records.clear()
        self._gone_after = gone_after
        self._new_stream = False

    def _closed_itself(self, head: int) -> bool:
        """Whether what was gone has been heard meanwhile, so that there is no gap any more."""
        return self._gone_after is not None and self._gone_after <= head <= self._reach

    def _open_snapshot(self, head: int, now: float) -> None:
        if self._first_look:
            self._first_look = False
        elif self._new_stream:
            self._before.append((Gap(1, head, self.log_id), None))
        else:
            first = self._reach + 1
            self._keep_what_is_next()
            self._before.append((Gap(first, head), None))
        if head < self._reach and not self._new_stream:
            self._held.clear()  # the numbers went back: these are of another past
            self.head = head
        else:
            self._held = {seq: held for seq, held in self._held.items() if seq > head}
        self._new_stream = False
        self._snapshot_at = head
        self._taken = self._reach = head
        self.head = max(self.head, head)
        self._goal = 0
        self._gap_since = None
        self._advance(now)

    def _keep_what_is_next(self) -> None:
        if self.log_id is None:
            return
        for seq in range(self._taken + 1, self._reach + 1):
            found = self._held.pop(seq, None)
            if found is not None:
                last = found.last if isinstance(found, Gap) else seq
                self._before.append((found, Position(self.log_id, last)))

    def _at(self, seq: int) -> None:
        if self.log_id is not None:
            self.position = Position(self.log_id, seq)
