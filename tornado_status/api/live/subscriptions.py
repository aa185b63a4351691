"""The live stream: all subscriptions of this server, and the loop that delivers events to them.

The subscriptions that are up to date form one group with one position in the log. The loop delivers
the next events to all of them. A subscription that resumes from an older position catches up first.
A slow client is disconnected, and loses nothing: it knows its position, and resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterable, Sequence

import structlog
from prometheus_client.core import Metric

from tornado_status.api.dependencies import EventFeed
from tornado_status.api.live import framing
from tornado_status.api.live.catch_up import CatchUp, enter_log, gap_after
from tornado_status.api.live.cpu_slices import CpuSlices
from tornado_status.api.live.delivery import Delivery
from tornado_status.api.live.event_filter import EventFilter, parse_filter
from tornado_status.api.live.live_group import LiveGroup
from tornado_status.api.live.subscription import Subscription
from tornado_status.api.live.subscription_limit import Slot, Slots
from tornado_status.config.settings import LiveSettings
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import Event
from tornado_status.observe import metrics
from tornado_status.runtime.waiting import wait_set

KEEP_ALIVE_S = 15.0  # after so much silence a message, so that proxies keep the connection open
ROUND = 500  # events a round, about 100 KB: well below what may wait for a client
REST_FACTOR = 4  # times the time worked: a fifth of the processor, not more
RETRY_S = 0.5  # while the database is away
RECHECK_S = 0.02  # while the feed and the log differ
CHECK_EVERY_S = 0.25  # a revocation ends subscriptions within a second
LIVE_GROUP = ""  # reads the log for many identities
GOODBYE_S = 2.0  # for clients to take the last message


class Subscriptions:
    """All subscriptions of this server."""

    def __init__(self, feed: EventFeed, settings: LiveSettings) -> None:
        self._feed = feed
        self._slots = Slots(settings.max_streams, on_empty=feed.close)
        self._group = LiveGroup()
        self._delivery = Delivery(self._group)
        self._catch_up = CatchUp(feed, self._group, self._delivery, KEEP_ALIVE_S)
        self._slices = CpuSlices(REST_FACTOR)
        self._compiling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger()
        self.keep_alive_s = KEEP_ALIVE_S

    def metrics(self) -> Iterable[Metric]:
        yield metrics.gauge(
            "streams", "Open streams of /api/stream and /api/socket", self._slots.count
        )
        yield metrics.counters(
            "streams_ended", "Streams that the server ended", ["reason"], self._delivery.ended
        )

    def start(self) -> None:
        """Start to deliver events."""
        self._tasks = [
            asyncio.create_task(self._deliver_all(), name="live stream"),
            asyncio.create_task(self._check_certificates(), name="certificates of subscriptions"),
        ]

    async def wait_failed(self) -> None:
        """Never return. Raises the error of a task that fails."""
        await asyncio.gather(*(asyncio.shield(task) for task in self._tasks))

    def take_slot(self, email: str, *, is_reader: bool) -> Slot:
        """Return a slot for one more subscription. Raises `Problem` if there is none."""
        return self._slots.take(email, is_reader=is_reader)

    async def event_filter(self, patterns: Sequence[str], kinds: Sequence[str]) -> EventFilter:
        """Return a reader's filter. Raises `FilterError`.

        One at a time, in a thread: to compile the costliest patterns takes 30 milliseconds.
        """
        async with self._compiling:
            return await asyncio.to_thread(parse_filter, patterns, kinds)

    async def open_feed(self) -> None:
        """Wake the feed before `add`, without awaiting between. Raises `StoreUnavailable`."""
        await self._feed.open()
        if not self._delivery.open:
            self._group.move_to(self._feed.head, self._feed.log_id)

    def position(self, log_id: uuid.UUID | None, after: int | None) -> tuple[uuid.UUID, int]:
        """Return the log id and the number of a client's position.

        Without a number that is the end of the log, without a log id the log that is served.
        """
        if after is None:
            return self._group.log_id, self._group.position
        return log_id or self._group.log_id, after

    def add(self, subscription: Subscription) -> None:
        """Serve a subscription from now on."""
        if self._slots.is_closed:
            subscription.is_open = False
            subscription.slot.release()
            subscription.say_goodbye(1001, "The server is stopping")
            return
        self._delivery.open[subscription] = None
        message = framing.position_message(subscription.log_id, subscription.position)
        self._delivery.send(subscription, message)
        if not self._group.join(subscription):
            self._catch_up.start(subscription)

    def on_disconnected(self, subscription: Subscription) -> None:
        """Remove a subscription whose connection is closed."""
        self._delivery.on_disconnected(subscription)

    async def close(self, timeout_s: float = 2 * GOODBYE_S) -> None:
        """Deliver the committed events, say goodbye, and wait for both, `timeout_s` at most."""
        patience_s = min(GOODBYE_S, timeout_s / 2)
        self._slots.is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._slices.rest = 0
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(patience_s):
                while self._is_behind():
                    pause_s = await self._deliver_round()
                    await asyncio.sleep(pause_s)
        subscriptions = list(self._delivery.open)
        for subscription in subscriptions:
            self._delivery.end(subscription, 1001, "draining", "The server is stopping")
        await self._catch_up.close()
        if subscriptions:
            disconnected = {subscription.disconnected for subscription in subscriptions}
            await asyncio.wait(disconnected, timeout=patience_s)
        for subscription in subscriptions:
            subscription.iostream.close()

    async def _deliver_all(self) -> None:
        """Deliver events to the live group as the feed advances, and keep connections alive."""
        loop = asyncio.get_running_loop()
        keep_alive_at = loop.time() + KEEP_ALIVE_S
        while True:
            if not self._is_behind():
                await wait_set(self._feed.advanced, keep_alive_at - loop.time())
                self._feed.advanced.clear()
            while self._is_behind():
                try:
                    pause_s = await self._deliver_round()
                except StoreError as error:
                    self._log.debug("live stream waits for the database", reason=str(error))
                    pause_s = RETRY_S
                await asyncio.sleep(pause_s)
                if loop.time() >= keep_alive_at:
                    break
            if loop.time() >= keep_alive_at:
                # Between rounds, not by a timer: within a round not all have the group's position.
                message = framing.position_message(self._group.log_id, self._group.position)
                for subscription in self._group.members():
                    self._delivery.send(subscription, message)
                keep_alive_at = loop.time() + KEEP_ALIVE_S

    def _is_behind(self) -> bool:
        group, feed = self._group, self._feed
        return bool(self._delivery.open) and (
            group.log_id != feed.log_id or group.position < feed.head
        )

    async def _deliver_round(self) -> float:
        """Deliver the next events to the live group; return how many seconds to wait then."""
        group, feed = self._group, self._feed
        if group.log_id != feed.log_id:
            message = enter_log(feed, group.log_id, group.position, feed.head)
            group.move_to(message.seq, message.log_id)
            self._send_move(message)
            return 0.0
        events = feed.after(group.position, ROUND)
        if events is None:
            try:
                page = await feed.read(group.position, None, LIVE_GROUP)
            except HistoryGone:
                span = await feed.span()
                if span.log_id == group.log_id:
                    message = gap_after(group.position, span)
                    group.move_to(message.seq)
                    self._send_move(message)
                return 0.0
            if page.log_id != group.log_id:
                return RECHECK_S  # the feed will notice, too
            events = page.events
        if not events:
            return RECHECK_S
        await self._deliver(events)
        return 0.0

    async def _deliver(self, events: Sequence[Event]) -> None:
        self._slices.begin()
        # Before anything awaits: a subscription that joins from here on has these events already.
        interested = self._group.interested(events)
        self._group.move_to(events[-1].seq)
        for event_filter, members in interested:
            selected = await self._slices.select(event_filter, events)
            if not selected:
                continue
            for subscription in members:
                if subscription.is_open:
                    self._delivery.send_events(subscription, selected)
                await self._slices.pause()
        await self._slices.finish()

    def _send_move(self, message: framing.LiveMessage) -> None:
        """Tell the live group that it has moved, over a gap or to another log."""
        for subscription in self._group.members():
            subscription.log_id = message.log_id
            self._delivery.send(subscription, message)

    async def _check_certificates(self) -> None:
        """End the subscriptions whose certificates are no longer accepted."""
        slices = CpuSlices(1)
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            slices.begin()
            for subscription in list(self._delivery.open):
                # Behind a proxy, other CAs mean a verification of each chain.
                await slices.pause()
                if not subscription.is_open:
                    continue
                reason = subscription.refusal()
                if reason is not None:
                    self._delivery.end(subscription, 1008, "certificate", reason)
            await slices.finish()
