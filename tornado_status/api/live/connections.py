"""/api/stream and /api/socket: the live stream, as Server-Sent Events and over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable
from email.utils import formatdate
from typing import Protocol, cast

from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body
from tornado.websocket import WebSocketHandler

from tornado_status.api.live import event_filter
from tornado_status.api.live.framing import RETRY_MS, EventStream, WebSocketFrames
from tornado_status.api.live.subscriptions import Follower, Place, Streams
from tornado_status.api.problem import Problem
from tornado_status.api.request_id import HEADER as REQUEST_ID
from tornado_status.api.users import ReadHandler
from tornado_status.errors import StoreError
from tornado_status.runtime.http_timeouts import TimeoutStream
from tornado_status.wire import datagram

MAX_IGNORED = 4096  # bytes from a client that has nothing to say once it follows

EVENT_STREAM = EventStream()
WEB_SOCKET_FRAMES = WebSocketFrames()


class Watch(Protocol):
    """Says of a request's connection, for as long as it lasts, why it has to end."""

    def watch(self, request: HTTPServerRequest) -> Callable[[], str | None]: ...


@stream_request_body
class FollowHandler(ReadHandler):
    """What both ways of following have in common: who may, which events, and from where."""

    streams: Streams
    watch: Watch

    async def allow(self) -> Place:
        """Return the place of a stream that may begin. Raises `Problem` and `StoreUnavailable`."""
        self.is_reader = self.access.may_read_all(self.check_in.email)
        self.wanted = self._wanted()
        self.since = self._since()
        self.of_log = self._log_id()
        if self._last:
            raise Problem(503, "This connection ends: connect anew", {"Retry-After": "1"})
        self.refusal = self.watch.watch(self.request)
        self.wire = cast(TimeoutStream, getattr(self.request.connection, "stream", None))
        place = self.streams.take_place(self.check_in.email, is_reader=self.is_reader)
        try:
            await self.streams.open()
        except BaseException:
            place.give_back()
            raise
        return place

    def follow(self, place: Place, say_goodbye: Callable[[int, str], None]) -> Follower:
        """Begin to follow."""
        frames = WEB_SOCKET_FRAMES if isinstance(self, WebSocketHandler) else EVENT_STREAM
        follower = Follower(
            place,
            self.wire,
            frames,
            self.wanted,
            self.refusal,
            say_goodbye,
            position=self.since,
            log_id=self.of_log,
        )
        self.streams.add(follower)
        return follower

    def _wanted(self) -> event_filter.Wanted:
        patterns = self.get_query_arguments("email")
        kinds = self.get_query_arguments("event")
        try:
            if self.is_reader:
                return event_filter.parse(patterns, kinds)
            if [pattern.lower() for pattern in patterns] != [self.check_in.email]:
                self.require_reader()
            return event_filter.own(self.check_in.email, kinds)
        except event_filter.FilterError as error:
            raise Problem(400, str(error)) from error

    def _since(self) -> int | None:
        # A browser that connects again sends the URL of before, and the header with where it is.
        last = self.request.headers.get("Last-Event-ID", "").strip()
        if not last:
            if not self.get_query_arguments("after"):
                return None
            return self.integer("after", 0, 0, datagram.MAX_SEQ)
        if last.isascii() and last.isdecimal() and int(last[:20]) <= datagram.MAX_SEQ:
            return int(last[:20])
        raise Problem(400, "Last-Event-ID: expected the number of an event")

    def _log_id(self) -> uuid.UUID | None:
        text = self.get_query_argument("log", None)
        if text is None:
            return None
        try:
            return uuid.UUID(text)
        except ValueError as error:
            raise Problem(400, "log: expected a UUID") from error


class StreamHandler(FollowHandler):
    """`GET`: Server-Sent Events, without an end."""

    async def get(self) -> None:
        if self.request.version != "HTTP/1.1":
            raise Problem(505, "The stream needs HTTP/1.1")
        place = await self.allow()
        wire = self.wire
        if wire.closed():
            place.give_back()
            return
        self.detach()
        self.leave_flight()
        self.application.log_request(self)
        head = (
            "HTTP/1.1 200 OK\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            "Content-Type: text/event-stream\r\n"
            "Cache-Control: no-store\r\n"
            f"{REQUEST_ID}: {self.request_id}\r\n"
            "X-Accel-Buffering: no\r\n"  # nginx would keep events back
            "Connection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        # Not all at once after a restart.
        retry_ms = RETRY_MS + random.randrange(RETRY_MS)  # noqa: S311 - jitter
        with contextlib.suppress(StreamClosedError):
            wire.write(head.encode() + EVENT_STREAM.opening(retry_ms))

        def say_goodbye(_: int, reason: str) -> None:
            try:
                written = asyncio.ensure_future(wire.write(EVENT_STREAM.ending(reason)))
            except StreamClosedError:
                return
            written.add_done_callback(lambda _: wire.close())

        follower = self.follow(place, say_goodbye)
        wire.set_close_callback(lambda: self.streams.closed(follower))
        _ignore(wire, MAX_IGNORED)


class SocketHandler(FollowHandler, WebSocketHandler):
    """The same messages over a WebSocket (RFC 6455)."""

    _place: Place | None = None
    _follower: Follower | None = None

    async def get(self, *args: str, **kwargs: str) -> None:
        self._require_handshake()
        self._place = await self.allow()
        try:
            await super().get(*args, **kwargs)
        finally:
            if self._follower is None:  # what was sent is no WebSocket handshake after all
                self._place.give_back()

    def _require_handshake(self) -> None:
        # Tornado looks, too, but refuses in bare text.
        headers = self.request.headers
        ours = {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        if headers.get("Upgrade", "").lower() != "websocket":
            raise Problem(426, "This path speaks WebSocket", ours)
        connection = [each.strip().lower() for each in headers.get("Connection", "").split(",")]
        if "upgrade" not in connection or not headers.get("Sec-WebSocket-Key"):
            raise Problem(400, "No WebSocket handshake: Connection or Sec-WebSocket-Key is missing")
        if headers.get("Sec-WebSocket-Version") not in ("7", "8", "13"):
            raise Problem(426, "Sec-WebSocket-Version: expected 13", ours)

    async def open(self, *args: str, **kwargs: str) -> None:
        """See `WebSocketHandler.open`."""
        try:
            await self.streams.open()
        except StoreError:
            self.close(1013, "The database is away: try again")
            return
        if self._place is None or self.wire.closed():
            return
        self._follower = self.follow(self._place, self._say_goodbye)

    def on_message(self, message: str | bytes) -> None:
        """Ignore it: a follower has nothing to say."""

    def on_close(self) -> None:
        if self._follower is not None:
            self.streams.closed(self._follower)

    def on_finish(self) -> None:
        if self.get_status() == 101:
            self.leave_flight()  # and no more: a connection without a request would seem idle
        else:
            super().on_finish()

    def on_connection_close(self) -> None:
        self._gone = True
        self.leave_flight()
        WebSocketHandler.on_connection_close(self)

    @property
    def max_message_size(self) -> int:
        return MAX_IGNORED

    @property
    def ping_interval(self) -> float:
        return self.streams.keep_alive_s

    @property
    def ping_timeout(self) -> float:
        return self.streams.keep_alive_s

    def _say_goodbye(self, code: int, reason: str) -> None:
        self.close(code, reason)


def _ignore(wire: TimeoutStream, limit: int) -> None:
    """Read, which notices that the client hangs up; one that goes on talking is hung up on."""
    try:
        reading = asyncio.ensure_future(wire.read_bytes(limit, partial=True))
    except StreamClosedError:
        return

    def on_read(reading: asyncio.Future[bytes]) -> None:
        if reading.cancelled() or reading.exception() is not None:
            return
        left = limit - len(reading.result())
        if left > 0:
            _ignore(wire, left)
        else:
            wire.close()

    reading.add_done_callback(on_read)
