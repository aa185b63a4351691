"""Closing a connection without a reset, so that the client can read its last answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

LINGER_S = 1.0  # for a client to read what was sent to it, and to close
DISCARDED = 64 * 1024  # bytes a read


class Lingering:
    """A connection whose client still sends: its bytes are discarded, for a while.

    Closing with unread data sends a reset, which overtakes the answer, alert or 400 before it. With
    `half_close` the client reads the end at once. Not behind an alert: the end overtakes it in
    Chromium, which then shows a network error.
    """

    __slots__ = ("_deadline", "_loop", "_on_close", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket.socket,
        on_close: Callable[[Lingering], None],
        *,
        half_close: bool,
    ) -> None:
        self._loop = loop
        self._on_close = on_close
        self._socket = connection
        self._deadline = loop.call_later(LINGER_S, self.close)
        loop.add_reader(self._socket, self._drain)
        if half_close:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._on_close(self)

    def _drain(self) -> None:
        try:
            more = self._socket.recv(DISCARDED)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self.close()
