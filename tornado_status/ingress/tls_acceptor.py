"""Accepting TLS connections, from clients or from a proxy that says in front whom it speaks for.

Hands a finished connection on with its `Peer`; a failed one is told why, counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable

from tornado.httpserver import HTTPServer

from tornado_status.config import ServerSettings
from tornado_status.errors import ProxyHeaderError
from tornado_status.ingress.acceptor import Acceptor
from tornado_status.ingress.authentication import ConnectionAuthenticator
from tornado_status.ingress.handshake import Address, Handshake, HandshakeThreads
from tornado_status.ingress.iostream import READ_CHUNK, PeerStream
from tornado_status.ingress.proxy_protocol.header_reader import ProxyHeaderReader, looks_proxied
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trusted_proxies import TrustedProxies

HANDSHAKE_THREADS = 2  # more would only fight for the same cores
LINGER_S = 1.0  # for a refused client to read why: a reset would overtake the alert

MAX_BUFFER = 64 * 1024  # per connection; heads and bodies have lower limits of their own


class TlsAcceptor(Acceptor):
    """Takes connections from bound sockets to `on_connection`, once their peer is known.

    The TLS context is read from `server.ssl_options` at each accept, so that it can be swapped.
    `refused` counts failed handshakes by kind, `durations` times the good ones. With
    `proxies` these, and nobody else, begin their connections with a PROXY protocol header.
    """

    def __init__(
        self,
        server: HTTPServer,
        settings: ServerSettings,
        judge: ConnectionAuthenticator,
        on_connection: Callable[[PeerStream, Address], None],
        refusals: Refusals,
        stream_class: type[PeerStream] = PeerStream,
        proxies: TrustedProxies | None = None,
    ) -> None:
        super().__init__(settings, refusals.counts)
        self._refusals = refusals
        self._server = server
        self._timeout_s = settings.handshake_timeout_s
        self._judge = judge
        self._on_connection = on_connection
        self._stream_class = stream_class
        self._proxies = proxies
        self._threads = HandshakeThreads(self._loop, HANDSHAKE_THREADS)
        self._preambles: set[ProxyHeaderReader] = set()
        self._handshakes: dict[ssl.SSLSocket, Handshake] = {}
        self._lingering: set[_Lingering] = set()

    def stop_accepting(self) -> None:
        """Close the listening sockets and drop what has not come to its first request."""
        super().stop_accepting()
        for preamble in list(self._preambles):
            preamble.abandon()
        for handshake in list(self._handshakes.values()):
            handshake.abandon()

    def close(self) -> None:
        """Stop accepting and end the threads."""
        self.stop_accepting()
        for lingering in list(self._lingering):
            lingering.close()
        self._threads.close()  # soon: a step never waits for a peer

    def _beginning(self) -> int:
        return len(self._handshakes) + len(self._preambles)

    def _begin(self, connection: socket.socket, address: Address) -> None:
        if self._proxies is None:
            self._shake_hands(connection, address, self._timeout_s)
            return
        connection.setblocking(False)
        if address[0] in self._proxies:
            # Not counted for its address: it is the address of everybody behind the proxy.
            self._count_open(1)
            self._preambles.add(
                ProxyHeaderReader(self, self._loop, connection, address, self._timeout_s)
            )
        elif looks_proxied(connection):
            self._refuse_proxy("proxy-not-trusted", address[0])
            connection.close()
        else:
            self._shake_hands(connection, address, self._timeout_s)

    def announced(
        self,
        preamble: ProxyHeaderReader,
        connection: socket.socket,
        address: Address,
        left_s: float,
    ) -> None:
        """See `preamble.Owner`."""
        self._preambles.discard(preamble)
        self._shake_hands(connection, address, left_s)
        self._count_open(-1)  # as a preamble: never none in between
        self._look_again()

    def unannounced(
        self,
        preamble: ProxyHeaderReader,
        connection: socket.socket,
        proxy: Address,
        error: ProxyHeaderError | None,
    ) -> None:
        """See `preamble.Owner`."""
        self._preambles.discard(preamble)
        if error is not None:
            self._refuse_proxy(error.reason, proxy[0], str(error))
        connection.close()
        self._count_open(-1)
        self._look_again()

    def _refuse_proxy(self, kind: str, proxy_ip: str, detail: str | None = None) -> None:
        self.refused[kind] += 1
        if (suppressed := self._logged.allow(kind)) is not None:
            self._log.warning(
                "PROXY header refused",
                reason=detail or "not from one of ingress.trusted_proxies",
                kind=kind,
                proxy_ip=proxy_ip,
                suppressed=suppressed,
            )

    def _shake_hands(self, connection: socket.socket, address: Address, left_s: float) -> None:
        context = self._server.ssl_options
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("server.ssl_options must be an SSLContext")
        if not self._has_room_for(address[0]):
            connection.close()
            return
        try:
            connection.getpeername()  # gone already? wrap_socket would lose the descriptor
            connection.setblocking(False)
            # Answers are single small packets; waiting to fill one would cost 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            connection.close()  # gone before we looked
            return
        self._opened(address[0])
        self._handshakes[secure] = Handshake(
            self, self._threads, self._loop, secure, address, left_s, self._judge.trust.bundle
        )

    def established(self, secure: ssl.SSLSocket, address: Address) -> None:
        """See `handshake.Owner`."""
        handshake = self._handshakes.pop(secure)
        self.durations.observe(self._loop.time() - handshake.began)
        bundle = handshake.bundle
        self._look_again()
        stream = self._stream_class(
            secure,
            ssl_options=self._server.ssl_options,
            max_buffer_size=MAX_BUFFER,
            read_chunk_size=READ_CHUNK,
        )
        stream.on_closed = functools.partial(self._closed, address[0])
        try:
            # A stream whose peer was gone when it was made waits for nothing and never closes.
            secure.getpeername()
            stream.peer, stream.standing = self._judge.judge(stream, address, bundle)
        except (OSError, ValueError):
            stream.close()  # gone in between
            return
        if stream.peer.refusal is not None:
            self._refusals.at_the_start(stream.peer.refusal, stream.peer.client_ip)

        # The stream finds out by itself that the handshake is over.
        self._on_connection(stream, address)

    def failed(self, secure: ssl.SSLSocket, address: Address, error: OSError) -> None:
        """See `handshake.Owner`."""
        del self._handshakes[secure]
        kind = _kind(error)
        self.refused[kind] += 1
        if (suppressed := self._logged.allow(kind)) is not None:
            self._log.info(
                "handshake failed", kind=kind, client_ip=address[0], suppressed=suppressed
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            self._lingering.add(_Lingering(self._loop, secure, self._lingered, address[0]))
        else:
            secure.close()
            self._closed(address[0])

    def dropped(self, secure: ssl.SSLSocket, address: Address) -> None:
        """See `handshake.Owner`."""
        del self._handshakes[secure]
        secure.close()
        self._closed(address[0])

    def _lingered(self, lingering: _Lingering) -> None:
        self._lingering.discard(lingering)
        self._closed(lingering.client_ip)


class _Lingering:
    """A refused connection, half closed: what the client still sends is read and thrown away.

    Closing with unread data sends a reset, which overtakes the alert that says why.
    """

    __slots__ = ("_deadline", "_loop", "_on_close", "_socket", "client_ip")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        secure: ssl.SSLSocket,
        on_close: Callable[[_Lingering], None],
        client_ip: str,
    ) -> None:
        self.client_ip = client_ip
        self._loop = loop
        self._on_close = on_close
        self._socket = socket.socket(fileno=secure.detach())
        self._socket.setblocking(False)
        self._deadline = loop.call_later(LINGER_S, self.close)
        loop.add_reader(self._socket, self._drain)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._deadline.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._on_close(self)

    def _drain(self) -> None:
        try:
            more = self._socket.recv(READ_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self.close()


def _kind(error: OSError) -> str:
    """Name a failed handshake in a short stable word, as `peer-did-not-return-a-certificate`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.replace(" ", "-").lower()
    reason = getattr(error, "reason", None)
    if reason:
        return str(reason).replace("_", "-").lower()
    return "closed"
