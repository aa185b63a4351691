"""The stream of a check-in connection: Tornado's, with its peer, and with a way to put back.

`PeerStream` uses Tornado's public interface only. `QuickPeerStream` overrides one private method of
it; `quick_stream_class` says whether the installed Tornado is one it was written for.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import ssl
from collections.abc import Callable
from typing import Any

from tornado.ioloop import IOLoop
from tornado.iostream import BaseIOStream, IOStream, SSLIOStream, StreamClosedError

from tornado_status.ingress.trust import AuthResult
from tornado_status.model.records import Peer
from tornado_status.runtime.http_timeouts import TimeoutStream, trailing_line_ends

READ_CHUNK = 4096  # bytes; a request fits in it, and more would be allocated for each read

# Of Tornado's source that `QuickPeerStream` was written for, by the versions that have it.
KNOWN_SOURCES = {
    "24961b1830ee": "6.5.2-6.5.10",
    "d4d3def1885b": "6.6-6.6.1",
}

OnData = Callable[[bytes], None]


class PushbackStream(TimeoutStream):
    """A stream that delivers what comes, and to which bytes that were read can be given back."""

    on_closed: Callable[[], None] | None = None
    requests = 0  # that ordinary HTTP is answering: see `ConnectionAuthenticator.begin`
    _seen = -1  # of the bytes received, what had come when `is_quiet` was last asked
    _given_back = b""

    def receive(self, on_data: OnData) -> None:
        """Call `on_data` once: with what comes next, or with nothing once the stream is closed."""
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
        """Say whether nothing is being answered, and nothing has come since this was last asked."""
        quiet = self._received == self._seen and not self.requests and not self.writing()
        self._seen = self._received
        return quiet

    def unread(self, data: bytes) -> None:
        """Make the next read return `data` first. Call once, while no read is under way."""
        ahead = self._received - self._taken
        if ahead:
            # The stream has read on by itself, as it does to notice that the peer hangs up. That
            # comes behind `data`; it is in memory, so the read is done at once.
            data += asyncio.ensure_future(self.read_bytes(ahead)).result()
        self._given_back = data
        self._taken -= len(data)
        self._blank = trailing_line_ends(data)  # and this is all that nobody has taken

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        if not self._given_back:
            return super().read_from_fd(buf)
        size = min(len(buf), len(self._given_back))
        buf[:size] = self._given_back[:size]
        self._given_back = self._given_back[size:]
        return size

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`: runs once, however the stream ends."""
        super().close_fd()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()


class PeerStream(PushbackStream, SSLIOStream):
    """A TLS stream that knows its peer."""

    peer: Peer  # set, with its standing, when the handshake is done
    standing: AuthResult | None

    def reply(self, data: bytes) -> asyncio.Future[None] | None:
        """Send `data`; return what is done when it is on its way, where it is not yet.

        Raises `StreamClosedError` or `OSError`.
        """
        if self.closed():
            raise StreamClosedError
        if not self.writing():
            # Past the stream's buffer, which is empty, as it nearly always is.
            try:
                self.socket.send(data)  # all of it, says OpenSSL, or nothing
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

    A client of this service speaks once, then waits for its answer. Tornado's streams look into the
    socket when a read begins, find nothing, and look twice when there is something; then comes a
    buffer, a future, and another round of the loop.
    """

    _on_data: OnData | None = None  # waits for data that is in the kernel, and nowhere nearer

    def receive(self, on_data: OnData) -> None:
        """See `PeerStream.receive`."""
        # What the buffer or OpenSSL holds the loop cannot see.
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
        try:
            data = self.socket.recv(READ_CHUNK)
        except ssl.SSLWantReadError:
            return  # half of a record
        except OSError as error:
            self.close(exc_info=error)
            return
        if not data:
            self.close()
            return
        on_data, self._on_data = self._on_data, None
        self._received += len(data)
        self._taken += len(data)
        if on_data is not None:
            on_data(data)


def quick_stream_class() -> type[PeerStream] | None:
    """Return `QuickPeerStream` where Tornado's source is still the one it was written for."""
    return QuickPeerStream if source_fingerprint() in KNOWN_SOURCES else None


def source_fingerprint() -> str:
    """Return a hash of what `QuickPeerStream` replaces, and of what it calls."""
    parts = (BaseIOStream._handle_events, BaseIOStream._add_io_state, SSLIOStream)
    source = "".join(inspect.getsource(part) for part in parts)
    return hashlib.sha256(source.encode()).hexdigest()[:12]
