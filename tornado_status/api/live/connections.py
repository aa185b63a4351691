"""/api/stream and /api/socket: the live stream as Server-Sent Events and over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable
from email.utils import formatdate
from typing import cast

from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body
from tornado.websocket import WebSocketHandler

from tornado_status.api.live.event_filter import (
    EventFilter,
    FilterError,
    own_events,
)
from tornado_status.api.live.framing import (
    RETRY_MS,
    EventStream,
    WebSocketFrames,
    parse_id,
)
from tornado_status.api.live.subscription import MAX_UNREAD_BYTES, Subscription
from tornado_status.api.live.subscription_limit import Slot
from tornado_status.api.live.subscriptions import Subscriptions
from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import ReadHandler
from tornado_status.api.request_id import HEADER as REQUEST_ID
from tornado_status.errors import StoreError
from tornado_status.runtime.http_timeouts import TimeoutStream
from tornado_status.wire.json_members import MAX_SEQ

# Bytes from a client, which has nothing to say once it is subscribed. With Server-Sent Events in
# all. Over a WebSocket between two keep-alives, which it answers with 6 bytes.
MAX_IGNORED = 4096

EVENT_STREAM = EventStream()
WEB_SOCKET_FRAMES = WebSocketFrames()


@stream_request_body
class SubscribeHandler(ReadHandler):
    """Base of both ways to subscribe: permission, event filter, and the position to resume from."""

    subscriptions: Subscriptions

    async def admit(self) -> Slot:
        """Return a slot for a new subscription. Raises `Problem` and `StoreUnavailable`."""
        self.is_reader = self.access.may_read_all(self.check_in.email)
        self.event_filter = await self._event_filter()
        self.resume_log, self.resume_after = self._resume_from()
        if self.ends_connection:
            raise Problem(503, "This connection is closing: reconnect", {"Retry-After": "1"})
        self.refusal = self.authenticator.watch(self.request)
        self.iostream = cast(TimeoutStream, getattr(self.request.connection, "stream", None))
        slot = self.subscriptions.take_slot(self.check_in.email, is_reader=self.is_reader)
        try:
            await self.subscriptions.open_feed()
        except BaseException:
            slot.release()
            raise
        return slot

    def subscribe(self, slot: Slot, say_goodbye: Callable[[int, str], None]) -> Subscription:
        """Begin to deliver events over this connection."""
        # A round of events at once, within its share of the processor, and not by and by.
        self.iostream.limit_unsent(MAX_UNREAD_BYTES)
        self.iostream.limit_received(MAX_IGNORED, self.subscriptions.keep_alive_s)
        log_id, position = self.subscriptions.position(self.resume_log, self.resume_after)
        subscription = Subscription(
            slot,
            self.iostream,
            WEB_SOCKET_FRAMES if isinstance(self, WebSocketHandler) else EVENT_STREAM,
            self.event_filter,
            self.refusal,
            say_goodbye,
            log_id=log_id,
            position=position,
        )
        self.subscriptions.add(subscription)
        return subscription

    async def _event_filter(self) -> EventFilter:
        patterns = self.get_query_arguments("email")
        kinds = self.get_query_arguments("event")
        try:
            if self.is_reader:
                return await self.subscriptions.event_filter(patterns, kinds)
            if [pattern.lower() for pattern in patterns] != [self.check_in.email]:
                self.require_reader()
            return own_events(self.check_in.email, kinds)
        except FilterError as error:
            raise Problem(400, str(error)) from error

    def _resume_from(self) -> tuple[uuid.UUID | None, int | None]:
        """Return the log id and the number to resume after; None if the client does not say."""
        # A browser reconnects with the first URL, and adds the header with its position.
        last = self.request.headers.get("Last-Event-ID", "").strip()
        if not last:
            return self._log_id(), self._after()
        try:
            log_id, seq = parse_id(last)
        except ValueError as error:
            raise Problem(400, "Last-Event-ID: expected the id of an event") from error
        return log_id or self._log_id(), seq

    def _after(self) -> int | None:
        if not self.get_query_arguments("after"):
            return None
        return self.integer("after", 0, 0, MAX_SEQ)

    def _log_id(self) -> uuid.UUID | None:
        text = self.get_query_argument("log", None)
        if text is None:
            return None
        try:
            return uuid.UUID(text)
        except ValueError as error:
            raise Problem(400, "log: expected a UUID") from error


class StreamHandler(SubscribeHandler):
    """`GET`: an endless response of Server-Sent Events."""

    async def get(self) -> None:
        if self.request.version != "HTTP/1.1":
            raise Problem(505, "The stream needs HTTP/1.1")
        slot = await self.admit()
        iostream = self.iostream
        if iostream.closed():
            slot.release()
            return
        self.detach()
        self.count_as_answered()
        self.application.log_request(self)
        head = (
            "HTTP/1.1 200 OK\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            "Content-Type: text/event-stream\r\n"
            "Cache-Control: no-store\r\n"
            f"{REQUEST_ID}: {self.request_id}\r\n"
            "X-Accel-Buffering: no\r\n"  # or nginx buffers events
            "Connection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        )
        # Spreads the reconnects after a restart.
        retry_ms = RETRY_MS + random.randrange(RETRY_MS)  # noqa: S311 - jitter
        with contextlib.suppress(StreamClosedError):
            iostream.write(head.encode() + EVENT_STREAM.opening(retry_ms))

        def say_goodbye(_: int, reason: str) -> None:
            try:
                written = asyncio.ensure_future(iostream.write(EVENT_STREAM.ending(reason)))
            except StreamClosedError:
                return
            written.add_done_callback(lambda _: iostream.close())

        subscription = self.subscribe(slot, say_goodbye)
        iostream.set_close_callback(lambda: self.subscriptions.on_disconnected(subscription))
        _ignore_input(iostream, MAX_IGNORED)


class SocketHandler(SubscribeHandler, WebSocketHandler):
    """The same messages over a WebSocket (RFC 6455)."""

    _slot: Slot | None = None
    _subscription: Subscription | None = None

    async def get(self, *args: str, **kwargs: str) -> None:
        self._require_handshake()
        self._slot = await self.admit()
        try:
            await super().get(*args, **kwargs)
        finally:
            if self._subscription is None:  # Tornado refused the handshake
                self._slot.release()

    def _require_handshake(self) -> None:
        # Tornado checks this, too, but answers in plain text.
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
            await self.subscriptions.open_feed()
        except StoreError:
            self.close(1013, "The database is away: try again")
            return
        if self._slot is None or self.iostream.closed():
            return
        self._subscription = self.subscribe(self._slot, self._say_goodbye)

    def on_message(self, message: str | bytes) -> None:
        """Ignore it."""

    def on_close(self) -> None:
        if self._subscription is not None:
            self.subscriptions.on_disconnected(self._subscription)

    def on_finish(self) -> None:
        if self.get_status() == 101:
            # No more than this: ingress closes a connection without a request as idle.
            self.count_as_answered()
        else:
            super().on_finish()

    def on_connection_close(self) -> None:
        self._is_disconnected = True
        self.count_as_answered()
        WebSocketHandler.on_connection_close(self)

    @property
    def max_message_size(self) -> int:
        return MAX_IGNORED

    @property
    def ping_interval(self) -> float:
        return self.subscriptions.keep_alive_s

    @property
    def ping_timeout(self) -> float:
        return self.subscriptions.keep_alive_s

    def _say_goodbye(self, code: int, reason: str) -> None:
        self.close(code, reason)


def _ignore_input(iostream: TimeoutStream, limit: int) -> None:
    """Read and ignore up to `limit` bytes, then close. Reading notices that the client hangs up."""
    try:
        reading = asyncio.ensure_future(iostream.read_bytes(limit, partial=True))
    except StreamClosedError:
        return

    def on_read(reading: asyncio.Future[bytes]) -> None:
        if reading.cancelled() or reading.exception() is not None:
            return
        left = limit - len(reading.result())
        if left > 0:
            _ignore_input(iostream, left)
        else:
            iostream.close()

    reading.add_done_callback(on_read)
