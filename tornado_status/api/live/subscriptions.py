"""Everybody who follows the live stream here: who gets which events, when, and when it ends.

All followers who are up to date share one position and are served in turns, each event encoded
once for all who want the same. Whoever comes with a position of before is brought up to it first,
from the ring or the log. Nothing is queued for a follower but what its connection has not taken
yet; beyond a bound it is cut off, and loses nothing, for it knows how far it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import structlog
from prometheus_client.core import Metric
from tornado.iostream import StreamClosedError

from tornado_status.api.live import framing
from tornado_status.api.live.event_filter import Wanted
from tornado_status.api.live.framing import Framing, Message
from tornado_status.api.problem import Problem
from tornado_status.config import LiveSettings
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import Event, LogSlice, LogSpan
from tornado_status.observe import metrics
from tornado_status.runtime.rate_limit import RateLimit

KEEP_ALIVE_S = 15.0  # after so much silence a comment, so that proxies keep the connection open
MAX_UNREAD_BYTES = 256 * 1024  # waiting for a slow client; then it is closed, and may resume
TURN = 500  # events a turn, about 100 KB: well below what may wait for a reader
SLICE_S = 0.005  # of a turn at a time; then check-ins have their turn
REST = 4  # times as long as a turn took: following takes a fifth of the processor, not more
MAX_REST_S = 0.5  # who looks at the board sees a check-in within a second
CATCH_UP = 1000  # events at once, for who has missed some
RETRY_S = 0.5  # while the database is away
JUDGE_EVERY_S = 0.25  # whether the certificates still hold: a revocation ends streams in a second
STREAMS_OF_ONE = 20  # of a user who is no reader: tabs and devices; one must not take all places
ENCODED = 32  # chunks kept for others who want the same
GOODBYE_S = 2.0  # for the last words to be taken


class Feed(Protocol):
    """The part of the store's feed that is needed here; see there."""

    log_id: uuid.UUID
    head: int
    on_advance: Callable[[], None]

    async def open(self) -> None: ...

    def close(self) -> None: ...

    def after(self, position: int, limit: int) -> list[Event] | None: ...

    async def read(self, position: int, emails: Sequence[str] | None) -> LogSlice: ...

    async def span(self) -> LogSpan: ...


class Wire(Protocol):
    """What is needed of the connection's stream: `http_timeouts.TimeoutStream`."""

    stalled: bool

    def write(self, data: bytes) -> Awaitable[None]: ...

    def writing(self) -> bool: ...

    def close(self) -> None: ...


class Place:
    """One of the streams that may be open; given back once."""

    def __init__(self, streams: Streams, email: str) -> None:
        self._streams = streams
        self._email: str | None = email

    def give_back(self) -> None:
        email, self._email = self._email, None
        if email is not None:
            self._streams._give_back(email)


class Follower:
    """One open stream.

    `refusal` says why it has to end, None while it need not. `say_goodbye(code, reason)` ends it
    in an orderly way; `code` is WebSocket's. `position` and `stream` are where it resumes.
    """

    def __init__(
        self,
        place: Place,
        wire: Wire,
        frames: Framing,
        wanted: Wanted,
        refusal: Callable[[], str | None],
        say_goodbye: Callable[[int, str], None],
        *,
        position: int | None,
        log_id: uuid.UUID | None,
    ) -> None:
        self.place = place
        self.wire = wire
        self.frames = frames
        self.wanted = wanted
        self.refusal = refusal
        self.say_goodbye = say_goodbye
        self.since = position
        self.position = position or 0
        self.log_id = log_id
        self.is_open = True
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_sent = 0.0  # of the loop's clock
        self._unread = 0

    def send(self, data: bytes, now: float, max_unread: int) -> Awaitable[None] | None:
        """Write, and return what ends when it is taken.

        None where too much waits already, or where the connection is gone.
        """
        if not self.wire.writing():
            self._unread = 0
        elif self._unread > max_unread:
            return None
        try:
            written = self.wire.write(data)
        except (StreamClosedError, OSError):
            return None
        self._unread += len(data)
        self.last_sent = now
        return written


class _Group:
    """Followers who are up to date and want the same."""

    def __init__(self) -> None:
        self.members: dict[Follower, None] = {}


class Streams:
    """All open streams of this server. `ended` counts the ends that were not the client's."""

    def __init__(self, feed: Feed, settings: LiveSettings) -> None:
        self._feed = feed
        self._settings = settings
        self._log = structlog.get_logger()
        self._failures = RateLimit()
        self._followers: dict[Follower, None] = {}
        self._groups: dict[Wanted, _Group] = {}
        self._of_email: dict[str, dict[Wanted, _Group]] = {}  # groups with nothing but e-mails
        self._broad: dict[Wanted, _Group] = {}  # the others: held against every event
        self._position = 0
        self._log_id = uuid.UUID(int=0)
        self._places: Counter[str] = Counter()
        self._closing = False
        self._wake = asyncio.Event()
        self._turned = asyncio.Event()
        self._catching_up: set[asyncio.Task[None]] = set()
        self._catch_up_turn = asyncio.Lock()
        self._encoded: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended: Counter[str] = Counter()

    @property
    def keep_alive_s(self) -> float:
        """After so much silence a message says that the stream is alive."""
        return KEEP_ALIVE_S

    @property
    def count(self) -> int:
        """Streams that are open, or about to be."""
        return self._places.total()

    def metrics(self) -> Iterable[Metric]:
        yield metrics.gauge("streams", "Open streams of /api/stream and /api/socket", self.count)
        yield metrics.counters(
            "streams_ended", "Streams that the server ended", ["reason"], self.ended
        )

    def start(self) -> None:
        self._feed.on_advance = self._wake.set
        self._tasks = [
            asyncio.create_task(self._take_turns(), name="streams"),
            asyncio.create_task(self._judge(), name="streams' certificates"),
        ]

    async def wait_failed(self) -> None:
        """Return never, but raise what nobody expected, should the turns end with it."""
        await asyncio.gather(*(asyncio.shield(task) for task in self._tasks))

    def take_place(self, email: str, *, is_reader: bool) -> Place:
        """Return a place for one more stream. Raises `Problem` where there is none."""
        if self._closing:
            raise Problem(503, "The server is stopping", {"Retry-After": "1"})
        if self.count >= self._settings.max_streams:
            raise Problem(503, "As many streams as allowed are open", {"Retry-After": "10"})
        if not is_reader and self._places[email] >= STREAMS_OF_ONE:
            raise Problem(503, "You have as many streams as allowed", {"Retry-After": "10"})
        self._places[email] += 1
        return Place(self, email)

    async def open(self) -> None:
        """Be ready for a follower, to be added in the same turn. Raises `StoreUnavailable`."""
        await self._feed.open()
        if not self._followers:
            self._position, self._log_id = self._feed.head, self._feed.log_id

    def add(self, follower: Follower) -> None:
        """Serve a follower from now on."""
        if self._closing:
            follower.is_open = False
            follower.place.give_back()
            follower.say_goodbye(1001, "The server is stopping")
            return
        if follower.since is None:
            follower.position = self._position
        if follower.log_id is None:
            follower.log_id = self._log_id
        self._followers[follower] = None
        self._send(follower, [framing.position(follower.log_id, follower.position)])
        if not self._join(follower):
            task = asyncio.create_task(self._catch_up(follower), name="catching up")
            self._catching_up.add(task)
            task.add_done_callback(lambda task: self._caught_up(task, follower))

    def closed(self, follower: Follower) -> None:
        """Hear that the connection of a follower is closed."""
        if follower.is_open and follower.wire.stalled:
            self.ended["slow"] += 1
        if not follower.gone.done():
            follower.gone.set_result(None)
        self._forget(follower)

    def _forget(self, follower: Follower) -> None:
        if not follower.is_open:
            return
        follower.is_open = False
        follower.place.give_back()
        del self._followers[follower]
        self._leave(follower)
        if not self._followers:
            self._encoded.clear()

    async def close(self, timeout_s: float = 2 * GOODBYE_S) -> None:
        """Deliver what is committed, say goodbye, and wait until it is taken: in `timeout_s`."""
        patience_s = min(GOODBYE_S, timeout_s / 2)
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(patience_s):
                while self._is_behind():
                    await self._turn()
        followers = list(self._followers)
        for follower in followers:
            self._end(follower, 1001, "draining", "The server is stopping")
        for task in list(self._catching_up):
            task.cancel()
        await asyncio.gather(*self._catching_up, return_exceptions=True)
        if followers:
            await asyncio.wait({follower.gone for follower in followers}, timeout=patience_s)
        for follower in followers:
            follower.wire.close()

    # ----------------------------------------------------------------------------------- turns

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        keep_alive_at = loop.time() + KEEP_ALIVE_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(keep_alive_at):
                    await self._wake.wait()
            self._wake.clear()
            while self._is_behind():
                try:
                    spent_s = await self._turn()
                except StoreError as error:
                    self._log.debug("streams wait for the database", reason=str(error))
                    spent_s = RETRY_S
                await asyncio.sleep(min(REST * spent_s, MAX_REST_S))
                if loop.time() >= keep_alive_at:
                    break
            if loop.time() >= keep_alive_at:
                # Here and not by a timer of its own: in the midst of a turn the position is not
                # yet that of all.
                for group in list(self._groups.values()):
                    message = framing.position(self._log_id, self._position)
                    for follower in list(group.members):
                        self._send(follower, [message])
                keep_alive_at = loop.time() + KEEP_ALIVE_S
                self._wake.set()

    def _is_behind(self) -> bool:
        return bool(self._followers) and (
            self._log_id != self._feed.log_id or self._position < self._feed.head
        )

    async def _turn(self) -> float:
        """Deliver the next events to all who are up to date; return the seconds it took."""
        if self._log_id != self._feed.log_id:
            self._log_id, self._position = self._feed.log_id, self._feed.head
            self._tell_all(framing.gap(1, self._position, self._log_id))
            return 0.0
        events = self._feed.after(self._position, TURN)
        if events is None:
            try:
                page = await self._feed.read(self._position, None)
            except HistoryGone:
                span = await self._feed.span()
                if span.log_id == self._log_id:
                    message = _pruned(self._position, span)
                    self._position = message.seq
                    self._tell_all(message)
                return 0.0
            if page.log_id != self._log_id:
                return SLICE_S  # the feed will notice, too
            events = page.events
        if not events:
            return SLICE_S
        return await self._deliver(events)

    async def _deliver(self, events: Sequence[Event]) -> float:
        began = time.thread_time()
        spent_s = 0.0
        # All at once, before anything awaits: who joins from here on has these events already.
        chosen = [
            (wanted, list(group.members))
            for wanted, group in self._interested(events).items()
            if group.members
        ]
        self._position = events[-1].seq
        self._turned.set()
        self._turned = asyncio.Event()
        for wanted, members in chosen:
            selected = wanted.select(events)
            if not selected:
                continue
            for follower in members:
                if follower.is_open:
                    self._send_events(follower, selected)
                if (elapsed := time.thread_time() - began) > SLICE_S:
                    spent_s += elapsed
                    await asyncio.sleep(0)
                    began = time.thread_time()
        return spent_s + time.thread_time() - began

    def _interested(self, events: Sequence[Event]) -> dict[Wanted, _Group]:
        found = dict(self._broad)
        if self._of_email:
            for event in events:
                found.update(self._of_email.get(event.email, {}))
        return found

    def _tell_all(self, message: Message) -> None:
        for group in list(self._groups.values()):
            for follower in list(group.members):
                follower.log_id = self._log_id
                self._send(follower, [message])
        self._turned.set()
        self._turned = asyncio.Event()

    # ------------------------------------------------------------------------------ catching up

    def _join(self, follower: Follower) -> bool:
        """Let a follower take part in the turns; False where it is not at their position."""
        if follower.log_id != self._log_id or follower.position != self._position:
            return False
        wanted = follower.wanted
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group()
            if wanted.only is None:
                self._broad[wanted] = group
            for email in wanted.only or ():
                self._of_email.setdefault(email, {})[wanted] = group
        group.members[follower] = None
        return True

    def _leave(self, follower: Follower) -> None:
        wanted = follower.wanted
        group = self._groups.get(wanted)
        if group is None or group.members.pop(follower, False) is False or group.members:
            return
        del self._groups[wanted]
        self._broad.pop(wanted, None)
        for email in wanted.only or ():
            del self._of_email[email][wanted]
            if not self._of_email[email]:
                del self._of_email[email]

    async def _catch_up(self, follower: Follower) -> None:
        """Bring a follower up to the position of the turns."""
        loop = asyncio.get_running_loop()
        while follower.is_open and not self._join(follower):
            if loop.time() - follower.last_sent > KEEP_ALIVE_S:
                log_id = follower.log_id or self._log_id
                self._send(follower, [framing.position(log_id, follower.position)])
            try:
                await self._catch_up_some(follower)
            except StoreError as error:
                self._log.debug("catching up waits for the database", reason=str(error))
                await asyncio.sleep(RETRY_S * random.uniform(0.5, 1))  # noqa: S311 - jitter

    def _caught_up(self, task: asyncio.Task[None], follower: Follower) -> None:
        self._catching_up.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A client that comes again, as they do, would cause it again.
            if (suppressed := self._failures.allow(type(error))) is not None:
                self._log.error("stream failed", suppressed=suppressed, exc_info=error)
            self._cut_off(follower)

    async def _catch_up_some(self, follower: Follower) -> None:
        log_id, position = follower.log_id, follower.position
        if log_id != self._log_id:
            follower.log_id, follower.position = self._log_id, self._position
            self._send(follower, [framing.gap(1, self._position, self._log_id)])
            return
        if self._position < position <= self._feed.head:
            await self._wait_turn()  # the turns are behind it
            return
        ahead = self._position - position
        events: Sequence[Event] | None = self._feed.after(position, min(CATCH_UP, ahead))
        if events and ahead > 0:
            last = events[-1].seq
        else:
            # Behind the ring; or beyond what we have heard of, and then the log knows.
            try:
                page = await self._feed.read(position, _listed(follower.wanted))
            except HistoryGone:
                span = await self._feed.span()
                if span.log_id == log_id:
                    message = _pruned(position, span)
                    follower.position = message.seq
                    self._send(follower, [message])
                else:
                    await self._wait_turn()
                return
            if page.log_id != log_id or page.last <= position:
                await self._wait_turn()
                return
            events, last = page.events, page.last
        async with self._catch_up_turn:
            began = time.thread_time()
            written: Awaitable[None] | None = None
            if selected := follower.wanted.select(events):
                written = self._send_events(follower, selected)
            follower.position = last
            # All who catch up share half of the processor.
            await asyncio.sleep(time.thread_time() - began)
        if written is not None:
            await asyncio.wait({asyncio.ensure_future(written)})

    async def _wait_turn(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._turned.wait()

    # ---------------------------------------------------------------------------------- sending

    def _send_events(self, follower: Follower, events: Sequence[Event]) -> Awaitable[None] | None:
        key = (follower.frames, follower.wanted, self._log_id, events[0].seq, events[-1].seq)
        data = self._encoded.get(key)
        if data is None:
            frame = follower.frames.frame
            data = follower.frames.join([frame(framing.of_event(event)) for event in events])
            self._encoded[key] = data
            if len(self._encoded) > ENCODED:
                self._encoded.popitem(last=False)
        return self._write(follower, data)

    def _send(self, follower: Follower, messages: Sequence[Message]) -> None:
        frames = follower.frames
        self._write(follower, frames.join([frames.frame(message) for message in messages]))

    def _write(self, follower: Follower, data: bytes) -> Awaitable[None] | None:
        if not follower.is_open:
            return None
        now = asyncio.get_running_loop().time()
        written = follower.send(data, now, MAX_UNREAD_BYTES)
        if written is None:
            self._cut_off(follower)
        return written

    def _cut_off(self, follower: Follower) -> None:
        # Nothing more gets through to it, no goodbye either.
        if follower.is_open:
            self.ended["slow"] += 1
            self._forget(follower)
            follower.wire.close()

    def _end(self, follower: Follower, code: int, kind: str, reason: str) -> None:
        if not follower.is_open:
            return
        self.ended[kind] += 1
        self._forget(follower)
        follower.say_goodbye(code, reason)

    async def _judge(self) -> None:
        while True:
            await asyncio.sleep(JUDGE_EVERY_S)
            for follower in list(self._followers):
                reason = follower.refusal()
                if reason is not None:
                    self._end(follower, 1008, "certificate", reason)

    def _give_back(self, email: str) -> None:
        self._places[email] -= 1
        if not self._places[email]:
            del self._places[email]
        if not self._places:
            self._feed.close()  # also where nobody came to follow after all


def _listed(wanted: Wanted) -> list[str] | None:
    return sorted(wanted.only) if wanted.only is not None else None


def _pruned(position: int, span: LogSpan) -> Message:
    """Return the gap behind a position that the log does not reach; or that is above its head."""
    last = span.head if position > span.head else span.oldest - 1
    return framing.gap(position + 1, last)
