"""One subscription: an open connection to the live stream, its filter and its position."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from tornado.iostream import StreamClosedError

from tornado_status.api.live.event_filter import EventFilter
from tornado_status.api.live.framing import Framing
from tornado_status.api.live.subscription_limit import Slot
from tornado_status.runtime.http_timeouts import TimeoutStream

MAX_UNREAD_BYTES = 256 * 1024  # waiting for a slow client; then it is closed, and may resume


class Subscription:
    """An open subscription.

    `refusal` returns why the subscription has to end, None if it need not. `say_goodbye(code,
    reason)` ends it gracefully; `code` is a WebSocket close code. The client has all events up to
    `position` of the log `log_id`.
    """

    def __init__(
        self,
        slot: Slot,
        iostream: TimeoutStream,
        framing: Framing,
        event_filter: EventFilter,
        refusal: Callable[[], str | None],
        say_goodbye: Callable[[int, str], None],
        *,
        log_id: uuid.UUID,
        position: int,
    ) -> None:
        self.slot = slot
        self.iostream = iostream
        self.framing = framing
        self.event_filter = event_filter
        self.refusal = refusal
        self.say_goodbye = say_goodbye
        self.log_id = log_id
        self.position = position
        self.is_open = True
        self.disconnected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_sent = 0.0  # the loop's time
        self._unread = 0

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Write, and return what completes when the kernel has taken it.

        Returns None if too much waits for the client already, or the connection is closed.
        """
        if not self.iostream.writing():
            self._unread = 0
        elif self._unread > MAX_UNREAD_BYTES:
            return None
        try:
            written = self.iostream.write(data)
        except (StreamClosedError, OSError):
            return None
        self._unread += len(data)
        self.last_sent = asyncio.get_running_loop().time()
        return written
