"""The TLS stream of a check-in connection: Tornado's, with its peer, and with a way to put back.

`PeerStream` uses Tornado's public interface only. `QuickPeerStream` overrides one private method of
it; `quick_stream_class` says whether the installed Tornado is one it was written for.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
from collections.abc import Callable

from tornado.ioloop import IOLoop
from tornado.iostream import BaseIOStream, SSLIOStream

from tornado_status.checkin import Peer
from tornado_status.ingress.trust import Standing

# Of Tornado's source of the overridden method, by the versions that have it.
KNOWN_SOURCES = {
    "03c73e8fd749": "6.5.2-6.6.1",
}


class PeerStream(SSLIOStream):
    """A TLS stream that knows its peer, and to which bytes that were read can be given back.

    `taken` is the number of bytes that its reader has had so far; the reader counts.
    """

    peer: Peer  # set, with its standing, when the handshake is done
    standing: Standing | None
    on_closed: Callable[[], None] | None = None
    taken = 0
    requests = 0  # that ordinary HTTP is answering: see `Judge.begin`
    _received = 0
    _seen = -1
    _given_back = b""

    def close_fd(self) -> None:
        """See `BaseIOStream.close_fd`: runs once, however the stream ends."""
        super().close_fd()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()

    def is_quiet(self) -> bool:
        """Say whether nothing is being answered, and nothing has come since this was last asked."""
        quiet = self._received == self._seen and not self.requests and not self.writing()
        self._seen = self._received
        return quiet

    def unread(self, data: bytes) -> None:
        """Make the next read return `data` first. Call once, while no read is under way."""
        ahead = self._received - self.taken
        if ahead:
            # The stream has read on by itself, as it does to notice that the peer hangs up. That
            # comes behind `data`; it is in memory, so the read is done at once.
            data += asyncio.ensure_future(self.read_bytes(ahead)).result()
        self._given_back = data

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        if not self._given_back:
            size = super().read_from_fd(buf)
            if size:
                self._received += size
            return size
        size = min(len(buf), len(self._given_back))
        buf[:size] = self._given_back[:size]
        self._given_back = self._given_back[size:]
        return size


class QuickPeerStream(PeerStream):
    """Does not look into the socket when a read begins, but waits until the loop sees it ready.

    A client of this service speaks once, then waits for its answer: when the next read begins there
    is nothing yet, and finding that out costs an SSL_read and an exception for each check-in.
    """

    def _try_inline_read(self) -> None:
        # What OpenSSL or `unread` holds the loop cannot see.
        if self._given_back or self._read_buffer or self.closed() or self.socket.pending():
            super()._try_inline_read()
        else:
            self._add_io_state(IOLoop.READ)


def quick_stream_class() -> type[PeerStream] | None:
    """Return `QuickPeerStream` where Tornado's method is still the one that it replaces."""
    source = inspect.getsource(BaseIOStream._try_inline_read)
    fingerprint = hashlib.sha256(source.encode()).hexdigest()[:12]
    return QuickPeerStream if fingerprint in KNOWN_SOURCES else None
