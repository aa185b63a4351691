"""Catching up: bringing a subscription that resumes to the position of the live group.

It is served from the feed's newest events, or from the log, at the pace of its client.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Sequence

import structlog

from tornado_status.api.dependencies import EventFeed
from tornado_status.api.live import framing
from tornado_status.api.live.cpu_slices import CpuSlices
from tornado_status.api.live.delivery import Delivery
from tornado_status.api.live.event_filter import EventFilter
from tornado_status.api.live.framing import LiveMessage
from tornado_status.api.live.live_group import LiveGroup
from tornado_status.api.live.subscription import Subscription
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import Event, LogSpan, common_head
from tornado_status.runtime.fair_semaphore import FairSemaphore
from tornado_status.runtime.rate_limit import RateLimit

PAGE = 1000  # events of one write
RETRY_S = 0.5  # while the database is away
# Another server may have told a client of a failover that this one has yet to notice.
UNKNOWN_LOG_S = 10.0
REST_FACTOR = 1  # all that catch up share half of the processor


class CatchUp:
    """The subscriptions that are catching up, a task each."""

    def __init__(
        self, feed: EventFeed, group: LiveGroup, delivery: Delivery, keep_alive_s: float
    ) -> None:
        self._feed = feed
        self._group = group
        self._delivery = delivery
        self._keep_alive_s = keep_alive_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._cpu = FairSemaphore(1, 1)  # subscriptions of one identity take one place in the queue
        self._slices = CpuSlices(REST_FACTOR)
        self._log = structlog.get_logger()
        self._error_log_limit = RateLimit()

    def start(self, subscription: Subscription) -> None:
        """Catch up in the background, then join the live group."""
        task = asyncio.create_task(self._run(subscription), name="catching up")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._on_done(task, subscription))

    async def close(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_done(self, task: asyncio.Task[None], subscription: Subscription) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The client reconnects, and may cause the same error again.
            if (suppressed := self._error_log_limit.allow(type(error))) is not None:
                self._log.error("subscription failed", suppressed=suppressed, exc_info=error)
            self._delivery.cut_off(subscription)

    async def _run(self, subscription: Subscription) -> None:
        loop = asyncio.get_running_loop()
        known_by = loop.time() + UNKNOWN_LOG_S
        while subscription.is_open and not self._group.join(subscription):
            if loop.time() - subscription.last_sent > self._keep_alive_s:
                message = framing.position_message(subscription.log_id, subscription.position)
                self._delivery.send(subscription, message)
            try:
                await self._send_page(subscription, loop.time() > known_by)
            except StoreError as error:
                self._log.debug("catching up waits for the database", reason=str(error))
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))  # noqa: S311 - jitter

    async def _send_page(self, subscription: Subscription, may_be_foreign: bool) -> None:
        """Send the next events, or a gap, or wait until the live group has moved."""
        group, log_id, position = self._group, subscription.log_id, subscription.position
        if group.log_id != self._feed.log_id:
            await group.wait_moved(RETRY_S)
            return
        if log_id != group.log_id:
            if not may_be_foreign and common_head(self._feed.lineage, log_id) is None:
                await group.wait_moved(RETRY_S)
                return
            message = enter_log(self._feed, log_id, position, group.position)
            subscription.log_id, subscription.position = message.log_id, message.seq
            self._delivery.send(subscription, message)
            return
        if group.position < position <= self._feed.head:  # the live group will come by
            await group.wait_moved(RETRY_S)
            return
        ahead = group.position - position
        events: Sequence[Event] | None = self._feed.after(position, min(PAGE, ahead))
        if events and ahead > 0:
            last = events[-1].seq
        else:
            # The position is older than the feed, or newer than its head. The log knows.
            try:
                only = _only(subscription.event_filter)
                page = await self._feed.read(position, only, subscription.slot.email)
            except HistoryGone:
                await self._send_gap(subscription)
                return
            if page.log_id != log_id or page.last <= position:
                await group.wait_moved(RETRY_S)
                return
            events, last = page.events, page.last
        written = await self._send_events(subscription, events, last)
        if written is not None:
            await asyncio.wait({asyncio.ensure_future(written)})

    async def _send_events(
        self, subscription: Subscription, events: Sequence[Event], last: int
    ) -> Awaitable[None] | None:
        async with self._cpu.place(subscription.slot.email):
            self._slices.begin()
            written: Awaitable[None] | None = None
            if selected := await self._slices.select(subscription.event_filter, events):
                written = self._delivery.send_events(subscription, selected)
            subscription.position = last
            await self._slices.finish()
        return written

    async def _send_gap(self, subscription: Subscription) -> None:
        span = await self._feed.span()
        if span.log_id == subscription.log_id:
            message = gap_after(subscription.position, span)
            subscription.position = message.seq
            self._delivery.send(subscription, message)
        else:
            await self._group.wait_moved(RETRY_S)


def enter_log(feed: EventFeed, log_id: uuid.UUID, position: int, end: int) -> LiveMessage:
    """Return how a position in another log goes on in the feed's.

    That is the same position if the feed's log has all events up to it. It is a rollback if the log
    has only the first of them. It is a gap up to `end` if it does not go on from the other log.
    """
    common = common_head(feed.lineage, log_id)
    if common is None:
        return framing.gap_message(feed.log_id, 1, end, new_log=True)
    if position > common:
        return framing.rollback_message(feed.log_id, common + 1, position)
    return framing.position_message(feed.log_id, position)


def gap_after(position: int, span: LogSpan) -> LiveMessage:
    """Return the gap between a position and the log: it was pruned, or is above the log's head."""
    last = span.head if position > span.head else span.oldest - 1
    return framing.gap_message(span.log_id, position + 1, last, new_log=False)


def _only(event_filter: EventFilter) -> list[str] | None:
    return sorted(event_filter.only) if event_filter.only is not None else None
