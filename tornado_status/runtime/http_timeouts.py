"""How long a peer may be silent between two requests, take for the head of one, and read nothing.

Tornado has one timeout for both, so who sends a byte now and then is as welcome as who is quiet.
For an answer that nobody takes it has none. `TimeoutStream` is for ordinary HTTP to read and write.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tornado.iostream import IOStream

MAX_BODY = 4096  # bytes: check-ins and reads have no body; the server reads and ignores one
BODY_TIMEOUT_S = 10.0  # for three packets
STALL_S = 30.0  # without an acknowledgement: the client is gone, or as good as gone
TCP_INFO_ACKED = slice(120, 128)  # tcpi_bytes_acked of struct tcp_info (linux/tcp.h), a u64


@dataclass(frozen=True, slots=True)
class HttpTimeouts:
    """`idle_s` until a head's first byte, `head_s` from it to the head's end, both in seconds.

    `late` returns the whole answer to who took longer than `head_s`; silence is not answered.
    """

    idle_s: float
    head_s: float
    late: Callable[[], bytes]

    @property
    def both_s(self) -> float:
        """For Tornado's own timeout of the two: it never comes first."""
        return self.idle_s + self.head_s + 1


def trailing_line_ends(data: bytes) -> int:
    """Return how many bytes of line ends are last in `data`."""
    return len(data) - len(data.rstrip(b"\r\n"))


class TimeoutStream(IOStream):
    """A stream that closes itself where a head is late. Without `deadlines` it never does.

    What is read with a regular expression is a head: so HTTP1Connection reads it.
    """

    deadlines: HttpTimeouts | None = None
    head_begun: float | None = None  # the loop's time, where the head's first byte came before
    _received = 0  # bytes that came in
    _taken = 0  # of these, what was read by somebody
    _blank = 0  # of these, how many line ends came last
    stalled = False  # what `is_stalled` returned last
    _acknowledged_before = -1  # bytes when `is_stalled` was last asked; -1 if nothing waited
    _stalled_since = 0.0  # the loop's time
    _awaits_head = False
    _timer: asyncio.TimerHandle | None = None

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """See `IOStream.read_until_regex`."""
        reading = self._count(super().read_until_regex(regex, max_bytes))
        if self.deadlines is not None and not reading.done():
            self._awaits_head = True
            reading.add_done_callback(self._on_head)
            if self._has_begun():
                self._begin_head(self.deadlines)
            else:
                self._time(self.deadlines.idle_s, self.close)
        self.head_begun = None
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
            if self.deadlines is not None:
                blank = trailing_line_ends(bytes(buf[:size]))
                self._blank = self._blank + blank if blank == size else blank
                if self._awaits_head and self._has_begun():
                    self._begin_head(self.deadlines)
        return size

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

    def _unacknowledged(self) -> int:
        """Return the bytes in the kernel that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        found = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(found, sys.byteorder)

    def _acknowledged(self) -> int:
        """Return the bytes that the peer has acknowledged so far.

        What the kernel takes of us says less: it takes more only once a third of its buffer is
        free, which at a slow client can be a minute.
        """
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_ACKED.stop)
        return int.from_bytes(info[TCP_INFO_ACKED], sys.byteorder)

    def close_fd(self) -> None:
        """See `IOStream.close_fd`."""
        self._forget_head()
        super().close_fd()

    def _count(self, reading: Awaitable[bytes]) -> asyncio.Future[bytes]:
        future = asyncio.ensure_future(reading)
        if future.done():
            self._on_read(future)
        else:
            # The first to hear of it: whoever reads next finds it counted.
            future.add_done_callback(self._on_read)
        return future

    def _on_read(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._taken += len(reading.result())

    def _has_begun(self) -> bool:
        """Say whether any of a head is there: empty lines before it are none (RFC 9112, 2.2)."""
        return self._received - self._taken > self._blank

    def _begin_head(self, deadlines: HttpTimeouts) -> None:
        self._awaits_head = False  # it has begun: what else comes does not move its deadline
        now = asyncio.get_running_loop().time()
        begun = now if self.head_begun is None else self.head_begun
        self._time(begun + deadlines.head_s - now, self._end_late)

    def _time(self, after_s: float, end: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(after_s, end)

    def _on_head(self, reading: asyncio.Future[bytes]) -> None:
        self._forget_head()

    def _forget_head(self) -> None:
        self._awaits_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_late(self) -> None:
        if self.deadlines is not None and not self.closed():
            self.write(self.deadlines.late())
        self.close()  # what the kernel does not take at once nobody waits for
