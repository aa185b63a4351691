"""The feed: one reader of the log for all followers here, and a ring of the newest events.

Events are in the ring in order and without a gap, whichever server committed them. Commits of this
server go straight into it if they continue it; all others are read from the log. A follower that is
behind the ring reads pages of the log. Without a follower the feed sleeps.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import (
    CommittedBatch,
    Event,
    Lineage,
    LogSlice,
    LogSpan,
    common_head,
)
from tornado_status.runtime.fair_semaphore import FairSemaphore

if TYPE_CHECKING:
    from tornado_status.store.store import Store

RING = 20_000  # newest events kept, about 10 MB: some seconds at full load, days of a small office
PAGE = 1000  # events of one reading: a few milliseconds of the loop
SCAN = 50_000  # numbers that one reading for certain e-mails looks through, inside the database
# Pages read at once for followers behind: the other connections are for requests.
CATCH_UPS = 2
CATCH_UPS_EACH = 1  # of one identity: its followers take turns, and others need not wait for all
RETRY_S = 0.25  # while the database is away


class Feed:
    """A position is the number of the last event that a follower has received.

    `advanced` is set when there are more events, or when a new log has begun. `on_following` is
    called with True and False as following begins and ends.
    """

    def __init__(self, log: Store, on_following: Callable[[bool], None], ring: int = RING) -> None:
        self._log = log
        self._on_following = on_following
        self._size = ring
        self._ring: list[Event] = []
        self._awake = False
        self._opening = asyncio.Lock()
        self._known = 0  # the largest head that was notified
        self._doubt = False  # about the log id: the log is read to check it
        self._wake = asyncio.Event()
        self._catch_ups = FairSemaphore(CATCH_UPS_EACH, CATCH_UPS)
        self._logger = structlog.get_logger()
        self.advanced = asyncio.Event()
        self.log_id = uuid.UUID(int=0)
        self.lineage: Lineage = ()
        self.head = 0

    async def open(self) -> None:
        """Wake up, and begin at the head. Raises `StoreUnavailable`."""
        async with self._opening:
            if not self._awake:
                self._restart(await self._log.log_span())
                self._awake = True
                self._on_following(True)

    def close(self) -> None:
        """Sleep, and forget the ring: the last follower has gone."""
        self._awake = False
        self._ring = []
        self._on_following(False)

    def committed(self, batch: CommittedBatch) -> None:
        """Take a batch that this server has just committed."""
        if not self._awake:
            return
        events = batch.events
        if (
            events
            and batch.log_id == self.log_id
            and events[0].seq == self.head + 1
            and events[-1].seq == self.head + len(events)
            and not self._doubt
        ):
            self._append(events)
        else:
            self.notify(batch.log_id, batch.head)

    def notify(self, log_id: uuid.UUID | None, head: int) -> None:
        """Take the notification that the log has gone on to `head`, or that a new log has begun."""
        if not self._awake:
            return
        if log_id is not None and log_id != self.log_id:
            self._doubt = True
        self._known = max(self._known, head)
        if self._doubt or self._known > self.head:
            self._wake.set()

    def after(self, position: int, limit: int) -> list[Event] | None:
        """Return up to `limit` events after a position; None if the ring begins later."""
        begin = position - (self.head - len(self._ring))
        if begin < 0 or position > self.head:
            return None
        return self._ring[begin : begin + limit]

    async def read(self, position: int, emails: Sequence[str] | None, reader: str) -> LogSlice:
        """Read the log after a position: all events, or those of some e-mails.

        `reader` is the identity that it is for.

        Raises `HistoryGone` and `StoreUnavailable`.
        """
        async with self._catch_ups.place(reader):
            if emails is not None:
                return await self._log.log_slice(position, SCAN, emails)
            found = self.after(position, PAGE)
            if found:  # another has fetched it meanwhile
                return LogSlice(self.log_id, self.head, found, found[-1].seq)
            page = await self._log.log_slice(position, PAGE, None)
        self.notify(page.log_id, page.head)
        first = self.head - len(self._ring) + 1
        if (
            page.events
            and page.log_id == self.log_id
            and page.events[-1].seq == first - 1
            and len(self._ring) + len(page.events) <= self._size
        ):
            # After a restart many resume at about the same place: read it once for all.
            self._ring[:0] = page.events
        return page

    async def span(self) -> LogSpan:
        """Return what the log holds. Raises `StoreUnavailable`."""
        return await self._log.log_span()

    async def run(self) -> None:
        """Read what other servers have committed; until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._awake and (self._doubt or self._known > self.head):
                try:
                    await self._read_on()
                except StoreError as error:
                    self._logger.debug("feed waits for the database", reason=str(error))
                    await asyncio.sleep(RETRY_S)

    async def _read_on(self) -> None:
        log_id, position = self.log_id, self.head
        try:
            page = await self._log.log_slice(position, PAGE, None)
        except HistoryGone:
            page = None
        if not self._awake or (log_id, position) != (self.log_id, self.head):
            return  # a commit of this server has moved it, or the last follower has gone
        if page is None or page.log_id != log_id:
            self._restart(await self._log.log_span())
            return
        self._doubt = False
        self._known = page.head
        if page.events:
            self._append(page.events)

    def _append(self, events: Sequence[Event]) -> None:
        self._ring += events
        self.head = events[-1].seq
        if len(self._ring) > self._size + self._size // 4:  # in one go: it moves all the rest
            del self._ring[: len(self._ring) - self._size]
        self.advanced.set()

    def _restart(self, span: LogSpan) -> None:
        """Go on at the head; in another log, where it parts from the one before."""
        common = None
        if span.log_id != self.log_id:
            common = common_head(span.lineage, self.log_id)
        if common is None:
            self._ring, self.head = [], span.head
        elif common < self.head:
            del self._ring[max(0, len(self._ring) - (self.head - common)) :]
            self.head = common
        self.log_id, self.lineage = span.log_id, span.lineage
        self._known, self._doubt = span.head, False
        self.advanced.set()
