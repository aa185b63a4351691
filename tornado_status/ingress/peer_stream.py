"""The IOStreams of check-in connections: direct at first, then as ordinary HTTP needs them.

They override only what Tornado documents for streams of one's own: `read_from_fd`, `write_to_fd`
and `close_fd` of `BaseIOStream`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import socket
import ssl
import sys
import termios
import time
from collections.abc import Awaitable, Callable

from tornado.iostream import StreamClosedError

from tornado_status.ingress.identity_shares import Share
from tornado_status.ingress.trust import AuthResult
from tornado_status.model.records import Peer
from tornado_status.runtime.http_timeouts import TimeoutStream, trailing_line_ends

READ_CHUNK = 4096  # bytes; a request fits in it, and more would be allocated for each read

# OpenSSL handles KeyUpdate and the like within a read: a read that took long may have been of
# thousands. They are as many bytes of TLS without data.
LONG_READ_S = 0.001  # of CPU time, of one read, which takes some 20 microseconds
# OpenSSL keeps up to 16,645 bytes of an unfinished record, which look the same.
MAX_WITHOUT_DATA_BYTES = 20480  # bytes since the handshake: at most 750 messages, some 7 ms
RECORD_BYTES = 40  # of TLS around the data of one read: a record has 22, or 29 in TLS 1.2

HAS_BODY = re.compile(rb"(?i)\n(?:content-length:[ \t]*[1-9]|transfer-encoding:)")

_BUFFER = memoryview(bytearray(READ_CHUNK))  # of all streams: what is read is copied at once

TCP_INFO_RECEIVED = slice(128, 136)  # tcpi_bytes_received of struct tcp_info (linux/tcp.h), a u64


class CheckInStream(TimeoutStream):
    """A stream that calls back with what the loop sees arrive, until ordinary HTTP takes it over.

    A client of this service sends one request, then waits for the answer. Nothing is tried before
    the loop sees the socket ready, and nothing passes the buffers and futures that ordinary HTTP
    needs. Reads and writes are those of `read_from_fd` and `write_to_fd` either way.

    `on_closed` is called once, at the end. `linger` closes its socket without a reset.
    """

    # Beyond thirty attributes Python shares no table of names: 0.6 KiB more a connection.
    __slots__ = ("_is_wanted", "_is_watched", "_on_data", "_on_sent", "linger", "on_closed")

    _unsent = b""
    _has_body = False  # the request that ordinary HTTP read last: some of it may still come
    requests = 0  # that ordinary HTTP is answering: see `InFlightCounting`
    _seen = -1  # the number of bytes received when `is_quiet` was last called
    _pushed_back = b""

    def __init__(self, connection: socket.socket, **limits: int) -> None:
        self.on_closed: Callable[[], None] | None = None
        self.linger: Callable[[socket.socket, Callable[[], None]], None] | None = None
        self._on_data: Callable[[bytes], None] | None = None  # None once ordinary HTTP reads
        self._on_sent: Callable[[], None] | None = None
        self._is_wanted = False  # the next data
        self._is_watched = False  # the socket, by the loop
        super().__init__(connection, **limits)

    def serve(self, on_data: Callable[[bytes], None], on_sent: Callable[[], None]) -> None:
        """Call `on_data` with the bytes that each `receive` asks for, with none once closed.

        `on_sent` is called when the kernel has taken what `reply` could not send at once.
        """
        self._on_data, self._on_sent = on_data, on_sent
        self.receive()

    def receive(self) -> None:
        """Ask for the next bytes."""
        self._is_wanted = True
        if not self._is_watched:
            if self.closed():
                return
            self._is_watched = True
            asyncio.get_running_loop().add_reader(self.fileno(), self._on_readable)
        if self._has_pending():
            asyncio.get_running_loop().call_soon(self._on_readable)

    def _has_pending(self) -> bool:
        """Return whether there are bytes that the loop cannot see."""
        return False

    def _on_readable(self) -> None:
        on_data = self._on_data
        if on_data is None or not self._is_wanted:
            self._unwatch()  # what comes waits in the socket
            return
        try:
            size = self.read_from_fd(_BUFFER)
        except OSError as error:
            self.close(exc_info=error)
            return
        if size is None:
            return  # half of a record
        self._is_wanted = False
        if not size:
            self._on_data = None
            self.close()
        self._taken += size
        on_data(bytes(_BUFFER[:size]))

    def _unwatch(self) -> None:
        if self._is_watched:
            self._is_watched = False
            asyncio.get_running_loop().remove_reader(self.fileno())

    def reply(self, data: bytes) -> bool:
        """Send `data`. Return False if some is on its way to the kernel: `on_sent` follows.

        Raises `StreamClosedError` or `OSError`.
        """
        if self.closed():
            raise StreamClosedError
        if not self._unsent:
            sent = self._send(data)
            if sent == len(data):
                return True
            data = data[sent:]
            asyncio.get_running_loop().add_writer(self.fileno(), self._on_writable)
        self._unsent += data
        return False

    def _send(self, data: bytes) -> int:
        try:
            return self.write_to_fd(memoryview(data))
        except BlockingIOError:
            return 0

    def _on_writable(self) -> None:
        try:
            self._unsent = self._unsent[self._send(self._unsent) :]
        except OSError as error:
            self.close(exc_info=error)
            return
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self.fileno())
            if self._on_sent is not None:
                self._on_sent()

    def is_quiet(self) -> bool:
        """Return whether no request is being answered, and no byte came since the last call."""
        quiet = self._received == self._seen and not self.requests and not self.writing()
        self._seen = self._received
        return quiet

    def unread(self, data: bytes) -> None:
        """Leave the stream to ordinary HTTP, whose first read returns `data`.

        Call once, when all replies are sent.
        """
        self._unwatch()
        self._on_data = self._on_sent = None
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
        self._unwatch()
        loop = asyncio.get_running_loop()
        if self._unsent:
            loop.remove_writer(self.fileno())
        if self._on_data is not None:
            loop.call_soon(self._on_data, b"")
        self._on_data = self._on_sent = None  # they lead back to this stream
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


class PeerStream(CheckInStream):
    """A TLS stream that knows its peer. `on_flood` is called when it sends TLS without data.

    Its handshake is over when it is made, so it needs nothing of `SSLIOStream`.
    """

    __slots__ = ("auth", "of_handshake", "on_flood", "peer", "reads", "share")

    socket: ssl.SSLSocket
    peer: Peer  # set, with its result, by the acceptor
    auth: AuthResult | None
    share: Share  # of the peer, if it has an identity

    def __init__(self, connection: ssl.SSLSocket, **limits: int) -> None:
        self.on_flood: Callable[[], None] | None = None
        self.of_handshake = 0  # bytes
        self.reads = 0  # that returned data
        super().__init__(connection, **limits)

    def _has_pending(self) -> bool:
        return self.socket.pending() > 0

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        began = time.thread_time()
        try:
            size = super().read_from_fd(buf)
            if size:
                self.reads += 1
            return size
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise _reset() from error
        finally:
            if time.thread_time() - began > LONG_READ_S:
                self.check_flood()

    def write_to_fd(self, data: memoryview) -> int:
        """See `BaseIOStream.write_to_fd`."""
        try:
            return super().write_to_fd(data)  # OpenSSL sends all of it or nothing
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLError as error:
            raise _reset() from error

    def check_flood(self) -> None:
        """Raise `ConnectionResetError` if the peer has sent more TLS without data than it may."""
        data = self._received + self.socket.pending()
        tls = bytes_read(self.socket) - self.of_handshake - data
        if tls - RECORD_BYTES * self.reads > MAX_WITHOUT_DATA_BYTES:
            if self.on_flood is not None:
                self.on_flood()
            raise _reset()


def _reset() -> ConnectionResetError:
    """Return the error of a peer that broke the connection, or its rules."""
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def bytes_read(connection: socket.socket) -> int:
    """Return how many bytes were read from a TCP socket so far, by OpenSSL too."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_RECEIVED.stop)
    received = int.from_bytes(info[TCP_INFO_RECEIVED], sys.byteorder)
    return received - bytes_unread(connection)


def bytes_unread(connection: socket.socket) -> int:
    """Return how many bytes have come to a socket and are not read yet."""
    return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, bytes(4)), sys.byteorder)
