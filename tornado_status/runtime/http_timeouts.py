"""Idle, request-header and write time-outs for Tornado streams.

Tornado has one time-out for idleness and the head together, so a client that sends a byte now and
then passes for an idle one. It has none for an answer that the client does not read.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from tornado.iostream import IOStream, StreamClosedError

MAX_BODY = 4096  # bytes: check-ins and reads have no body; the server reads and ignores one
BODY_TIMEOUT_S = 10.0  # for three packets
STALL_S = 30.0  # without an acknowledgement: the client is gone, or as good as gone
TCP_INFO_ACKED = slice(120, 128)  # tcpi_bytes_acked of struct tcp_info (linux/tcp.h), a u64
NEVER_S = float("inf")  # of Tornado's own time-out for a head: the rule of `HttpTimeouts` holds


@dataclass(frozen=True, slots=True)
class HttpTimeouts:
    """Time-outs of a connection that waits for a request, in seconds.

    `idle_s` is for silence until the first byte of a head, `head_s` from that byte to the head's
    end. `late_answer` returns the whole answer to a late head; an idle connection gets none.
    """

    idle_s: float
    head_s: float
    late_answer: Callable[[], bytes]

    @property
    def sweep_every_s(self) -> float:
        """How often to ask `overdue` of each connection."""
        return min(self.idle_s / 4, self.head_s / 4, 1.0)

    def overdue(
        self, quiet_since: float, head_begun: float | None, now: float
    ) -> Literal["idle", "head"] | None:
        """Return which time-out a connection has exceeded, None if neither.

        All in the loop's time. `head_begun` is when the first byte of a head came, None without
        one: then the connection is idle since `quiet_since`.
        """
        if head_begun is not None:
            return "head" if now - head_begun > self.head_s else None
        return "idle" if now - quiet_since > self.idle_s else None


def trailing_line_ends(data: bytes) -> int:
    """Return how many bytes of line ends are last in `data`."""
    return len(data) - len(data.rstrip(b"\r\n"))


class TimeoutStream(IOStream):
    """A stream of ordinary HTTP that knows when its peer is late. Its owner sweeps it.

    A read with a regular expression is taken for the read of a head, as HTTP1Connection does it.
    Without `timeouts` only a stalled write is ever overdue.
    """

    timeouts: HttpTimeouts | None = None
    head_begun: float | None = None  # the loop's time, once the head's first byte is there
    quiet_since = 0.0  # the loop's time when the read of a head began
    _awaits_head = False
    _received = 0  # bytes that came in
    _taken = 0  # of these, those that were read from the stream
    _blank = 0  # of these, how many line ends came last
    stalled = False  # what `is_stalled` returned last
    _acknowledged_before = -1  # bytes when `is_stalled` was last asked; -1 if nothing waited
    _stalled_since = 0.0  # the loop's time
    chatters = False  # its peer sent more than it may: see `limit_received`
    _allowance: tuple[int, float] | None = None  # bytes, in so many seconds
    _counted, _counted_since = 0, 0.0  # bytes, since then

    def idle_since(self) -> float | None:
        """Return since when the stream has waited for a whole head, None during a request.

        In the loop's time.
        """
        return self.quiet_since if self._awaits_head and not self.closed() else None

    def close_if_overdue(self, now: float) -> None:
        """Close the stream after a time-out. `now` is the loop's time."""
        if self.closed():
            return
        overdue = None
        if self._awaits_head and self.timeouts is not None:
            overdue = self.timeouts.overdue(self.quiet_since, self.head_begun, now)
            if overdue == "head":
                self.write(self.timeouts.late_answer())
        if overdue is not None or self.is_stalled(now):
            self.close()  # what the kernel does not take at once is lost

    def limit_unsent(self, size: int) -> None:
        """Limit the unsent bytes that the kernel holds for the peer.

        See `base_acceptor.MAX_UNSENT_BYTES`.
        """
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)

    def limit_received(self, size: int, each_s: float) -> None:
        """From now on close if the peer sends more than `size` bytes in `each_s` seconds.

        For a peer that has nothing to say: what it sends costs the loop's time.
        """
        self._allowance = size, each_s

    def _count_received(self, count: int, allowed: int, each_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._counted_since > each_s:
            self._counted, self._counted_since = 0, now
        self._counted += count
        if self._counted > allowed:
            self.chatters = True
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def is_stalled(self, now: float) -> bool:
        """Return whether the peer has acknowledged nothing for `STALL_S` of what waits for it.

        It is a slow client whose window stays shut, or it has vanished. Ask about once a second;
        `now` is the loop's time.
        """
        acknowledged = self._acknowledged() if self.writing() or self._unacknowledged() else -1
        if acknowledged == -1 or acknowledged != self._acknowledged_before:
            self._acknowledged_before, self._stalled_since = acknowledged, now
        else:
            self.stalled = now - self._stalled_since > STALL_S
        return self.stalled

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """See `IOStream.read_until_regex`."""
        if self.closed():
            # Tornado would go on with what is buffered: a thousand requests without an answer.
            raise StreamClosedError(self.error)
        reading = self._count(super().read_until_regex(regex, max_bytes))
        begun, self.head_begun = self.head_begun, None
        if self.timeouts is not None and not reading.done():
            self._awaits_head = True
            self.quiet_since = now = asyncio.get_running_loop().time()
            if self._has_begun():
                self.head_begun = now if begun is None else begun
            reading.add_done_callback(self._on_head)
        return reading

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """See `IOStream.read_until`."""
        return self._count(super().read_until(delimiter, max_bytes))

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        """See `IOStream.read_bytes`."""
        return self._count(super().read_bytes(num_bytes, partial))

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `IOStream.read_from_fd`."""
        size = super().read_from_fd(buf)
        if size:
            self._received += size
            if self._allowance is not None:
                self._count_received(size, *self._allowance)
            if self.timeouts is not None:
                blank = trailing_line_ends(bytes(buf[:size]))
                self._blank = self._blank + blank if blank == size else blank
                # More of a head that has begun does not move its time-out.
                if self._awaits_head and self.head_begun is None and self._has_begun():
                    self.head_begun = asyncio.get_running_loop().time()
        return size

    def _unacknowledged(self) -> int:
        """Return the bytes in the kernel that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        found = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(found, sys.byteorder)

    def _acknowledged(self) -> int:
        """Return the bytes that the peer has acknowledged so far.

        The bytes that the kernel has buffered say less: it buffers more only once a third of its
        buffer is free. With a slow client that can take a minute.
        """
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_ACKED.stop)
        return int.from_bytes(info[TCP_INFO_ACKED], sys.byteorder)

    def _count(self, reading: Awaitable[bytes]) -> asyncio.Future[bytes]:
        future = asyncio.ensure_future(reading)
        if future.done():
            self._on_read(future)
        else:
            # The first callback: the next read finds these bytes counted.
            future.add_done_callback(self._on_read)
        return future

    def _on_read(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._taken += len(reading.result())

    def _has_begun(self) -> bool:
        """Return whether any of a head is there: empty lines before it are none (RFC 9112, 2.2)."""
        return self._received - self._taken > self._blank

    def _on_head(self, reading: asyncio.Future[bytes]) -> None:
        self._awaits_head = False
        self.head_begun = None
