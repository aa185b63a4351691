"""The IOStreams of check-in connections: Tornado's, with their peer, and with pushback.

`PeerStream` uses Tornado's public interface only. `QuickPeerStream` overrides one private method of
it; `quick_stream_class` returns it only for a Tornado version that it was written for.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import inspect
import os
import re
import socket
import ssl
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import BaseIOStream, IOStream, SSLIOStream, StreamClosedError

from tornado_status.ingress.identity_shares import Share
from tornado_status.ingress.trust import AuthResult
from tornado_status.model.records import Peer
from tornado_status.runtime.http_timeouts import TimeoutStream, trailing_line_ends

READ_CHUNK = 4096  # bytes; a request fits in it, and more would be allocated for each read

# OpenSSL handles KeyUpdate and the like within a read: a read that took long may have been of
# thousands. They are as many bytes of TLS without data.
LONG_READ_S = 0.001  # of CPU time, of one read, which takes some 20 microseconds
MAX_WITHOUT_DATA_BYTES = 4096  # bytes since the handshake: some 150 messages, a millisecond
RECORD_BYTES = 40  # of TLS around the data of one read: a record has 22, or 29 in TLS 1.2

# Fingerprints of Tornado's source that `QuickPeerStream` was written for, and their versions.
KNOWN_SOURCES = {
    "d4d3def1885b": "6.6-6.6.1",
}

HAS_BODY = re.compile(rb"(?i)\n(?:content-length:[ \t]*[1-9]|transfer-encoding:)")

TCP_INFO_RECEIVED = slice(128, 136)  # tcpi_bytes_received of struct tcp_info (linux/tcp.h), a u64

OnData = Callable[[bytes], None]


class PushbackStream(TimeoutStream):
    """A stream that calls back with the bytes it reads, and to which bytes can be returned.

    `on_closed` is called once, at the end. `linger` closes its socket without a reset.
    """

    on_closed: Callable[[], None] | None = None
    linger: Callable[[socket.socket, Callable[[], None]], None] | None = None
    _has_body = False  # the request that ordinary HTTP read last: some of it may still come
    requests = 0  # that ordinary HTTP is answering: see `InFlightCounting`
    _seen = -1  # the number of bytes received when `is_quiet` was last called
    _pushed_back = b""

    def receive(self, on_data: OnData) -> None:
        """Call `on_data` once: with the next bytes, or with none once the stream is closed."""
        try:
            reading = asyncio.ensure_future(self.read_bytes(READ_CHUNK, partial=True))
        except (StreamClosedError, OSError):
            asyncio.get_running_loop().call_soon(on_data, b"")
        else:
            reading.add_done_callback(lambda reading: self._deliver(reading, on_data))

    def _deliver(self, reading: asyncio.Future[bytes], on_data: OnData) -> None:
        failed = reading.cancelled() or reading.exception() is not None
        on_data(b"" if failed else reading.result())

    def is_quiet(self) -> bool:
        """Return whether no request is being answered, and no byte came since the last call."""
        quiet = self._received == self._seen and not self.requests and not self.writing()
        self._seen = self._received
        return quiet

    def unread(self, data: bytes) -> None:
        """Make the next read return `data` first. Call once, while no read is under way."""
        ahead = self._received - self._taken
        if ahead:
            # The stream has read on by itself, as it does to notice that the peer hangs up. Those
            # bytes come behind `data`; they are in memory, so the read is done at once.
            data += asyncio.ensure_future(self.read_bytes(ahead)).result()
        self._pushed_back = data
        self._taken -= len(data)
        self._blank = trailing_line_ends(data)  # no other bytes are left untaken

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        if not self._pushed_back:
            return super().read_from_fd(buf)
        size = min(len(buf), len(self._pushed_back))
        buf[:size] = self._pushed_back[:size]
        self._pushed_back = self._pushed_back[size:]
        return size

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """See `IOStream.read_until_regex`."""
        self._has_body = False
        reading = asyncio.ensure_future(super().read_until_regex(regex, max_bytes))
        if reading.done():
            self._on_whole_head(reading)
        else:
            reading.add_done_callback(self._on_whole_head)
        return reading

    def _on_whole_head(self, reading: asyncio.Future[bytes]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._has_body = HAS_BODY.search(reading.result()) is not None

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`."""
        on_closed, self.on_closed = self.on_closed, None
        if (
            self._has_body
            and on_closed is not None
            and self.linger is not None
            and self.error is None
            and not self.writing()
        ):
            # An answer that comes before the end of the request's body.
            connection = socket.socket(fileno=self.socket.detach())  # without TLS
            self.socket = None  # type: ignore[assignment]
            connection.setblocking(False)
            self.linger(connection, on_closed)
            return
        super().close_fd()
        if on_closed is not None:
            on_closed()


class PeerStream(PushbackStream, SSLIOStream):
    """A TLS stream that knows its peer. `on_flood` is called when it sends TLS without data."""

    peer: Peer  # set, with its result, when the handshake is done
    auth: AuthResult | None
    share: Share  # of the peer, if it has an identity
    on_flood: Callable[[], None] | None = None
    of_handshake = 0  # bytes
    reads = 0  # that returned data

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        began = time.thread_time()
        try:
            size = super().read_from_fd(buf)
            if size:
                self.reads += 1
            return size
        finally:
            if time.thread_time() - began > LONG_READ_S:
                self.check_flood()

    def check_flood(self) -> None:
        """Raise `ConnectionResetError` if the peer has sent more TLS without data than it may."""
        data = self._received + self.socket.pending()
        tls = bytes_read(self.socket) - self.of_handshake - data
        if tls - RECORD_BYTES * self.reads > MAX_WITHOUT_DATA_BYTES:
            if self.on_flood is not None:
                self.on_flood()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def reply(self, data: bytes) -> asyncio.Future[None] | None:
        """Send `data`. Return a future if it is still on its way to the kernel.

        Raises `StreamClosedError` or `OSError`.
        """
        if self.closed():
            raise StreamClosedError
        if not self.writing():
            # Past the stream's buffer, which is empty here, as it nearly always is.
            try:
                self.socket.send(data)  # OpenSSL sends all of it or nothing
            except ssl.SSLWantWriteError:
                pass
            else:
                return None
        return asyncio.ensure_future(self.write(data))


class PlainStream(PushbackStream, IOStream):
    """A stream of a proxy, which terminates TLS."""

    def reply(self, data: bytes) -> asyncio.Future[None]:
        """See `PeerStream.reply`."""
        return asyncio.ensure_future(self.write(data))


class QuickPeerStream(PeerStream):
    """Receives in one step when the loop sees the socket ready, past the stream's read buffer.

    A client of this service sends one request, then waits for the answer. Tornado's streams try to
    read when a read begins, find nothing, and read twice when there is something. A buffer, a
    future and another round of the loop follow.
    """

    _on_data: OnData | None = None  # set while the next bytes can only be in the kernel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # It is over already. The stream would notice only after the first bytes, which it does not
        # see here; until then it reads nothing of what OpenSSL holds.
        self._do_ssl_handshake()

    def receive(self, on_data: OnData) -> None:
        """See `PeerStream.receive`."""
        # The loop cannot see what the buffer or OpenSSL holds.
        if self.closed() or self._received != self._taken or self.socket.pending():
            super().receive(on_data)
        else:
            self._on_data = on_data
            self._add_io_state(IOLoop.READ)

    def reading(self) -> bool:
        """See `BaseIOStream.reading`."""
        return self._on_data is not None or super().reading()

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`."""
        super().close_fd()
        if self._on_data is not None:
            on_data, self._on_data = self._on_data, None
            asyncio.get_running_loop().call_soon(on_data, b"")

    def _handle_events(self, fd: Any, events: int) -> None:
        if not events & IOLoop.READ or self._on_data is None:
            super()._handle_events(fd, events)
            return
        if events != IOLoop.READ:
            super()._handle_events(fd, events & ~IOLoop.READ)
        if self._on_data is not None:
            self._receive_now()

    def _receive_now(self) -> None:
        began = time.thread_time()
        try:
            try:
                data = self.socket.recv(READ_CHUNK)
                self._received += len(data)
                self._taken += len(data)
                self.reads += 1
            finally:
                if time.thread_time() - began > LONG_READ_S:
                    self.check_flood()
        except ssl.SSLWantReadError:
            return  # half of a record
        except OSError as error:
            self.close(exc_info=error)
            return
        if not data:
            self.close()
            return
        on_data, self._on_data = self._on_data, None
        if on_data is not None:
            on_data(data)


def bytes_read(connection: socket.socket) -> int:
    """Return how many bytes were read from a TCP socket so far, by OpenSSL too."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RECEIVED.stop)
    unread = fcntl.ioctl(connection, termios.FIONREAD, bytes(4))
    return int.from_bytes(info[TCP_INFO_RECEIVED], sys.byteorder) - int.from_bytes(
        unread, sys.byteorder
    )


def quick_stream_class() -> type[PeerStream] | None:
    """Return `QuickPeerStream` if Tornado's source is one that it was written for."""
    return QuickPeerStream if source_fingerprint() in KNOWN_SOURCES else None


def source_fingerprint() -> str:
    """Return a hash of the methods that `QuickPeerStream` replaces and calls."""
    parts = (BaseIOStream._handle_events, BaseIOStream._add_io_state, SSLIOStream)
    source = "".join(inspect.getsource(part) for part in parts)
    return hashlib.sha256(source.encode()).hexdigest()[:12]
