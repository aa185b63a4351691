"""Accepting TLS connections, from clients or from a proxy that sends a PROXY header first.

Passes a finished connection on with its `Peer`. A failed one gets a TLS alert, or a 400 if it is
plain HTTP, and is counted and logged.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from tornado.httpserver import HTTPServer

from tornado_status.config.settings import ServerSettings
from tornado_status.errors import ProxyHeaderError
from tornado_status.ingress import plain_http
from tornado_status.ingress.authentication import ConnectionAuthenticator
from tornado_status.ingress.check_in_acceptor import CheckInAcceptor, site
from tornado_status.ingress.handshake import Handshake, HandshakeSteps
from tornado_status.ingress.handshake_hints import hint
from tornado_status.ingress.identity_shares import TOO_MANY_CONNECTIONS, Shares
from tornado_status.ingress.peer_stream import READ_CHUNK, PeerStream, bytes_read
from tornado_status.ingress.proxy_protocol.header_reader import ProxyHeaderReader, looks_proxied
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.ingress.waiting_room import WaitingRoom
from tornado_status.model.records import CheckIn, Peer
from tornado_status.runtime.base_acceptor import RETRY_S, Address
from tornado_status.runtime.bounded_dict import BoundedDict

HANDSHAKE_THREADS = 2  # more would only compete for the same cores
MAX_HANDSHAKES = 1000  # at work at once; the next ones wait, and addresses take turns
MAX_NEW = 64  # of these, those before their first step: a client's turn must not come behind more
MAX_MUTE = 1000  # handshakes without a whole ClientHello; for the next one the oldest is dropped
REFUSED_S = 2.0  # for the request of a connection that is refused, to answer it
FLOODED_S = 60.0  # a certificate gets no connection for so long after a flood of TLS without data
MAX_FLOODED = 4096  # certificates that are remembered for it
STALLED_S = 3.0  # a handshake may wait so long for its client while others need its place

MAX_BUFFER = 64 * 1024  # per connection; heads and bodies have lower limits of their own


class TlsAcceptor(CheckInAcceptor):
    """Passes connections to `on_stream` once their handshake is done and their peer is known.

    `is_busy` says whether a handshake in the event loop would delay others.
    The TLS context is read from `server.ssl_options` at each accept, so that it can be swapped.
    Connections of `proxies`, and no others, begin with a PROXY protocol header.
    """

    def __init__(
        self,
        server: HTTPServer,
        settings: ServerSettings,
        authenticator: ConnectionAuthenticator,
        on_stream: Callable[[PeerStream, Address], None],
        is_busy: Callable[[], bool],
        refusals: Refusals,
        proxies: TrustedProxies | None = None,
    ) -> None:
        super().__init__(settings, refusals)
        self._server = server
        self._timeout_s = settings.handshake_timeout_s
        self._max_per_identity = settings.max_connections_per_identity
        self._shares = Shares()
        self._authenticator = authenticator
        self._on_stream = on_stream
        self._proxies = proxies
        self._steps = HandshakeSteps(self.loop, HANDSHAKE_THREADS, is_busy)
        self._proxy_headers: set[ProxyHeaderReader] = set()
        self._streams: set[PeerStream] = set()  # of finished handshakes
        self._flooded: BoundedDict[bytes, float] = BoundedDict(MAX_FLOODED)  # certificates, since
        self._handshakes: dict[ssl.SSLSocket, Handshake] = {}  # the oldest first
        self._mute: dict[ssl.SSLSocket, Handshake] = {}  # of these, those without a ClientHello
        self._new: set[ssl.SSLSocket] = set()  # and those that have made no step
        self._waiting: WaitingRoom[tuple[socket.socket, Address, float]] = WaitingRoom()
        self._letting_in: asyncio.Handle | None = None  # while one of them waits
        self._refused: dict[PeerStream, None] = {}  # they will be told so; the oldest first
        # Many handshakes must not take the connections of clients that are there.
        self._max_handshakes = max(1, min(MAX_HANDSHAKES, self.max_connections // 2))

    @property
    def handshakes(self) -> int:
        """See `CheckInAcceptor.handshakes`."""
        return len(self._handshakes) + len(self._waiting) + len(self._proxy_headers)

    @property
    def at_work(self) -> int:
        """The number of handshakes, without those whose client has sent no whole ClientHello."""
        return len(self._handshakes) - len(self._mute)

    def drop_mute(self) -> bool:
        """End the oldest handshake without a ClientHello; return False if there is none."""
        if not self._mute:
            return False
        self._mute.pop(next(iter(self._mute))).expire()
        return True

    def has_newcomers(self) -> bool:
        """Return whether a handshake has made no step yet: it may turn out to be mute."""
        return bool(self._new or self._waiting)

    def drop_stalled(self) -> bool:
        """End the oldest handshake whose client is late; return False if there is none."""
        latest = self.loop.time() - STALLED_S
        for handshake in self._handshakes.values():
            if handshake.began > latest:
                return False
            if handshake.awaits_client and handshake.has_hello:
                handshake.expire()
                return True
        return False

    def is_full(self) -> bool:
        """See `Acceptor.is_full`."""
        return self._awaits_proxies() or super().is_full()

    def _awaits_proxies(self) -> bool:
        return len(self._proxy_headers) >= self._max_handshakes

    def _make_room(self) -> bool:
        if self._awaits_proxies():
            return False
        return (
            self.drop_mute()
            or self._drop_refused()
            or self.drop_stalled()
            or self._drop_waiting()
            or (not self.has_newcomers() and super()._make_room())
        )

    def _drop_waiting(self) -> bool:
        """Close one whose handshake has not begun; return False if not many of them wait."""
        if len(self._waiting) <= self._max_handshakes:
            return False
        connection, address, _ = self._waiting.drop()
        self.refusals.count("crowded-out")
        self._close(connection, address)
        return True

    def _close(self, connection: socket.socket, address: Address) -> None:
        connection.close()
        self.closed(address[0])

    def _drop_refused(self) -> bool:
        """Close the oldest connection whose client is refused; return False if there is none."""
        if not self._refused:
            return False
        stream = next(iter(self._refused))
        del self._refused[stream]
        stream.close()
        return True

    def stop_accepting(self) -> None:
        """Close the listening sockets and drop connections without a first request."""
        super().stop_accepting()
        for header in list(self._proxy_headers):
            header.abandon()
        if self._letting_in is not None:
            self._letting_in.cancel()
        while self._waiting:
            connection, address, _ = self._waiting.take()
            self._close(connection, address)
        for handshake in list(self._handshakes.values()):
            handshake.abandon()

    def close(self) -> None:
        """Stop accepting and end the threads."""
        super().close()
        self._steps.close()  # soon: a step never waits for a peer

    def _begin(self, connection: socket.socket, address: Address) -> None:
        if self._proxies is None:
            self._shake_hands(connection, address, self._timeout_s)
            return
        connection.setblocking(False)
        if address[0] in self._proxies:
            # Not counted by address: all clients behind the proxy have its address.
            self.count_open(1)
            self._proxy_headers.add(
                ProxyHeaderReader(self, self.loop, connection, address, self._timeout_s)
            )
        elif looks_proxied(connection):
            self._refuse_proxy("proxy-not-trusted", address[0])
            connection.close()
        else:
            self._shake_hands(connection, address, self._timeout_s)

    def proxy_header_read(
        self,
        header: ProxyHeaderReader,
        connection: socket.socket,
        address: Address,
        left_s: float,
    ) -> None:
        """Go on with the handshake of the client at `address`, which has `left_s` seconds left."""
        self._proxy_headers.discard(header)
        self._shake_hands(connection, address, left_s)
        self.count_open(-1)  # last, so that the count is not 0 in between

    def proxy_header_failed(
        self,
        header: ProxyHeaderReader,
        connection: socket.socket,
        proxy: Address,
        error: ProxyHeaderError | None,
    ) -> None:
        """Close the connection. `error` is None for a health check, or if the peer is gone."""
        self._proxy_headers.discard(header)
        if error is not None:
            self._refuse_proxy(error.reason, proxy[0], str(error))
        connection.close()
        self.count_open(-1)

    def _refuse_proxy(self, kind: str, proxy_ip: str, detail: str | None = None) -> None:
        self.refusals.count(
            kind,
            "PROXY header refused",
            level=logging.WARNING,
            reason=detail or "not from one of ingress.trusted_proxies",
            kind=kind,
            proxy_ip=proxy_ip,
        )

    def _shake_hands(self, connection: socket.socket, address: Address, left_s: float) -> None:
        """Begin a handshake, now or when it is its address's turn."""
        if not self.has_room_for(address[0]):
            connection.close()
            return
        self.opened(address[0])
        self._waiting.add(site(address[0]), (connection, address, self.loop.time() + left_s))
        if self._letting_in is None:
            self._let_in()

    def _let_in(self) -> None:
        """Begin handshakes that wait, as many as may be at work."""
        self._letting_in = None
        while (
            self._waiting
            and len(self._new) < MAX_NEW
            and (self.at_work < self._max_handshakes or self.drop_stalled())
        ):
            connection, address, until = self._waiting.take()
            if (left_s := until - self.loop.time()) > 0:
                self._begin_handshake(connection, address, left_s)
            else:
                self.refusals.count("timeout")
                self._close(connection, address)
        if self._waiting:
            self._letting_in = self.loop.call_later(RETRY_S, self._let_in)

    def _let_in_soon(self) -> None:
        if self._letting_in is not None:
            self._letting_in.cancel()
            self._letting_in = self.loop.call_soon(self._let_in)

    def _begin_handshake(self, connection: socket.socket, address: Address, left_s: float) -> None:
        context = self._server.ssl_options
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("server.ssl_options must be an SSLContext")
        try:
            connection.getpeername()  # gone already? wrap_socket would lose the descriptor
            connection.setblocking(False)
            # Answers are single small packets; waiting to fill one would cost 40 ms.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except OSError:
            self._close(connection, address)  # the peer is gone already
            return
        bundle = self._authenticator.trust.bundle
        handshake = self._handshakes[secure] = Handshake(
            self, self._steps, self.loop, secure, address, left_s, bundle
        )
        self._new.add(secure)
        context.sni_callback = self._on_client_hello
        handshake.begin()

    def _on_client_hello(
        self, secure: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext
    ) -> None:
        # In a thread or the loop, once the ClientHello is whole, also if it names no server.
        if isinstance(secure, ssl.SSLSocket) and (handshake := self._handshakes.get(secure)):
            handshake.has_hello = True

    def awaits_client(self, handshake: Handshake) -> None:
        """Note a handshake that has made a step and waits for more from its client."""
        self._new.discard(handshake.secure)
        if handshake.has_hello:
            self._mute.pop(handshake.secure, None)
        else:
            self._mute[handshake.secure] = handshake
            if len(self._mute) > MAX_MUTE:
                self.drop_mute()
        self._let_in_soon()
        self.try_again()

    def _forget(self, secure: ssl.SSLSocket) -> Handshake:
        self._new.discard(secure)
        self._mute.pop(secure, None)
        self._let_in_soon()
        return self._handshakes.pop(secure)

    def established(self, secure: ssl.SSLSocket, address: Address) -> None:
        """Pass on the connection of a finished handshake."""
        handshake = self._forget(secure)
        self.durations.observe(self.loop.time() - handshake.began)
        stream = PeerStream(secure, max_buffer_size=MAX_BUFFER, read_chunk_size=READ_CHUNK)
        self._streams.add(stream)
        stream.on_closed = functools.partial(self._gone, stream, address)
        stream.linger = self.linger
        try:
            secure.getpeername()  # gone already?
            stream.peer, stream.auth = self._authenticator.authenticate(
                stream, address, handshake.bundle
            )
            stream.of_handshake = bytes_read(secure)
        except (OSError, ValueError):
            stream.close()  # the peer has gone in between
            return
        if self._has_flooded(stream):
            stream.close()
            return
        stream.on_flood = functools.partial(self._end_flood, stream)
        if stream.peer.refusal is not None:
            self.refusals.at_the_start(stream.peer.refusal, stream.peer.client_ip)
            self.loop.call_later(REFUSED_S, stream.close)
        elif stream.peer.check_in is not None:
            self._take_share(stream, stream.peer.check_in, address)
        if stream.peer.check_in is None:
            self._refused[stream] = None
        self._on_stream(stream, address)

    def _take_share(self, stream: PeerStream, check_in: CheckIn, address: Address) -> None:
        """Count a connection of its identity, or let its first request be refused."""
        share = self._shares.of(check_in.email)
        if self._max_per_identity and share.connections >= self._max_per_identity:
            self.refusals.count(
                TOO_MANY_CONNECTIONS.reason,
                "connection limit of an identity reached",
                per=check_in.email,
                email=check_in.email,
                client_ip=check_in.client_ip,
            )
            peer = stream.peer
            stream.peer = Peer(peer.client_ip, peer.client_port, None, TOO_MANY_CONNECTIONS)
            self.loop.call_later(REFUSED_S, stream.close)
            return

        def closed() -> None:
            share.connections -= 1
            self._gone(stream, address)

        share.connections += 1
        stream.share = share
        stream.on_closed = closed

    def _gone(self, stream: PeerStream, address: Address) -> None:
        self._streams.discard(stream)
        self._refused.pop(stream, None)
        self.closed(address[0])

    def _has_flooded(self, stream: PeerStream) -> bool:
        since = self._flooded.get(_certificate(stream))
        return since is not None and self.loop.time() - since < FLOODED_S

    def _end_flood(self, stream: PeerStream) -> None:
        """Close the other connections of a stream's certificate; the stream closes itself.

        They may be as costly: each read takes the loop's time.
        """
        certificate, peer = _certificate(stream), stream.peer
        self._flooded[certificate] = self.loop.time()
        email = {} if peer.check_in is None else {"email": peer.check_in.email}
        self.refusals.count(
            "tls-flood",
            "connections of a certificate closed",
            per=certificate,
            level=logging.WARNING,
            reason="it sent TLS messages without data",
            client_ip=peer.client_ip,
            **email,
        )
        for other in [each for each in self._streams if _certificate(each) == certificate]:
            if other is not stream:
                other.close()

    def failed(self, secure: ssl.SSLSocket, address: Address, error: OSError) -> None:
        """Count a failed handshake, and close its connection once the alert or 400 is read."""
        self._forget(secure)
        connection = socket.socket(fileno=secure.detach())  # without TLS
        connection.setblocking(False)
        kind = _kind(error)
        fields: dict[str, Any] = {"kind": kind, "client_ip": address[0]}
        if (meaning := hint(kind)) is not None:
            fields["hint"] = meaning
        self.refusals.count(kind, "handshake failed", **fields)
        plain = kind in plain_http.KINDS
        if plain:
            plain_http.answer(connection)
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            closed = functools.partial(self.closed, address[0])
            self.linger(connection, closed, half_close=plain)
        else:
            connection.close()
            self.closed(address[0])

    def dropped(self, secure: ssl.SSLSocket, address: Address) -> None:
        """Close the connection of an abandoned handshake."""
        self._forget(secure)
        secure.close()
        self.closed(address[0])


def _certificate(stream: PeerStream) -> bytes:
    """Return the peer's certificate in DER."""
    return b"" if stream.auth is None else stream.auth.chain[0]


def _kind(error: OSError) -> str:
    """Return a short stable word for a failed handshake, as `peer-did-not-return-a-certificate`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.replace(" ", "-").lower()
    reason = getattr(error, "reason", None)
    if reason:
        return str(reason).replace("_", "-").lower()
    return "closed"
