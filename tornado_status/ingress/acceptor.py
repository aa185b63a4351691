"""Accepting connections: the listening sockets, and how many connections there may be.

Hands a finished connection on with its `Peer`; a failed one is told why, counted and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence

import structlog
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from tornado_status.checkin import Peer
from tornado_status.config import Server
from tornado_status.errors import ConfigError
from tornado_status.ingress.handshake import Address, Handshake, HandshakeThreads
from tornado_status.ingress.peer import Judge
from tornado_status.ingress.stream import READ_CHUNK, PeerStream
from tornado_status.logs import RateLimit

BACKLOG = 1024  # connections that the kernel completes while we are busy; it caps it by somaxconn
ACCEPTS_A_TURN = 64  # then those already connected have their turn
HANDSHAKE_THREADS = 2  # more would only fight for the same cores
DEFER_S = 1  # a client that has said nothing by then is accepted all the same
FULL_PAUSE_S = 0.1  # after running out of descriptors: those connected go on, the rest waits
RESERVED = 64  # descriptors for the database, announcements, files and the admin port
LINGER_S = 1.0  # for a refused client to read why: a reset would overtake the alert

MAX_BUFFER = 64 * 1024  # per connection; heads and bodies have lower limits of their own

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def bind(settings: Server) -> list[socket.socket]:
    """Bind the check-in port. Raises `ConfigError` where it is taken or the address is not ours."""
    try:
        return bind_sockets(
            settings.port,
            address=settings.host,
            backlog=BACKLOG,
            reuse_port=settings.reuse_port,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"server.port: {settings.port} is taken by another program"
            ) from error
        raise ConfigError(
            f"server.host: cannot listen on {settings.host} port {settings.port}: {error.strerror}"
        ) from error


class Acceptor:
    """Takes connections from bound sockets to `on_connection`, once their peer is known.

    The TLS context is read from `server.ssl_options` at each accept, so that it can be swapped.
    `refused` counts failed handshakes by kind.
    """

    def __init__(
        self,
        server: HTTPServer,
        settings: Server,
        judge: Judge,
        on_connection: Callable[[PeerStream, Address], None],
        stream_class: type[PeerStream] = PeerStream,
    ) -> None:
        self._server = server
        self._timeout_s = settings.handshake_timeout_s
        self._max_handshakes = settings.max_handshakes
        self._max_connections = _within_descriptors(settings.max_connections)
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._max_per_address = settings.max_connections_per_address
        self._connections: Counter[str] = Counter()
        self._full = False
        self._judge = judge
        self._on_connection = on_connection
        self._stream_class = stream_class
        self._log = structlog.get_logger()
        self._logged = RateLimit()
        self._loop = asyncio.get_running_loop()
        self._threads = HandshakeThreads(self._loop, HANDSHAKE_THREADS)
        self._listening: list[socket.socket] = []
        self._handshakes: dict[ssl.SSLSocket, Handshake] = {}
        self._lingering: set[_Lingering] = set()
        self.refused: Counter[str] = Counter()

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept. The sockets are ours from here on."""
        for sock in sockets:
            # Wake us when a client has spoken, not before: a mute one costs us nothing.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)
        self._listening += sockets
        self._watch()

    def stop_accepting(self) -> None:
        """Close the listening sockets and drop unfinished handshakes. What is connected goes on."""
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening = []
        for handshake in list(self._handshakes.values()):
            handshake.abandon()

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False where that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Stop accepting and end the threads."""
        self.stop_accepting()
        for lingering in list(self._lingering):
            lingering.close()
        self._threads.close()  # soon: a step never waits for a peer

    def _watch(self) -> None:
        for sock in self._listening:
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if self._is_full():
                # The rest waits in the kernel's backlog.
                self._full = True
                for sock in self._listening:
                    self._loop.remove_reader(sock)
                return
            try:
                connection, address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._pause(listening, error)
                    return
                raise
            self._begin(connection, address)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        # The connection stays in the backlog and the socket readable: without a pause the loop
        # would spin.
        if (held := self._logged.admit("descriptors")) is not None:
            self._log.error("cannot accept connections", reason=error.strerror, before=held)
        self._loop.remove_reader(listening)

        def resume() -> None:
            if listening in self._listening and not self._full:
                self._loop.add_reader(listening, self._accept, listening)

        self._loop.call_later(FULL_PAUSE_S, resume)

    def _begin(self, connection: socket.socket, address: Address) -> None:
        context = self._server.ssl_options
        if not isinstance(context, ssl.SSLContext):
            raise TypeError("server.ssl_options must be an SSLContext")
        client_ip = address[0]
        if self._max_per_address and self._connections[client_ip] >= self._max_per_address:
            connection.close()
            self.refused["too-many-connections"] += 1
            if (held := self._logged.admit("address")) is not None:
                self._log.info("too many connections", client_ip=client_ip, before=held)
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
        self._open += 1
        self._none_open.clear()
        self._connections[client_ip] += 1
        self._handshakes[secure] = Handshake(
            self,
            self._threads,
            self._loop,
            secure,
            address,
            self._timeout_s,
            self._judge.trust.bundle,
        )

    def _is_full(self) -> bool:
        if len(self._handshakes) >= self._max_handshakes:
            return True
        if self._open < self._max_connections:
            return False
        if (held := self._logged.admit("connections")) is not None:
            limit = self._max_connections
            self._log.warning("as many connections as allowed", limit=limit, before=held)
        return True

    def _closed(self, client_ip: str) -> None:
        self._open -= 1
        if not self._open:
            self._none_open.set()
        self._connections[client_ip] -= 1
        if not self._connections[client_ip]:
            del self._connections[client_ip]
        self._look_again()

    def _look_again(self) -> None:
        if self._full and not self._is_full():
            self._full = False
            self._watch()

    def established(self, secure: ssl.SSLSocket, address: Address) -> None:
        """See `handshake.Owner`."""
        bundle = self._handshakes.pop(secure).bundle
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
            self._log_identity(stream.peer)

        # The stream finds out by itself that the handshake is over.
        self._on_connection(stream, address)

    def failed(self, secure: ssl.SSLSocket, address: Address, error: OSError) -> None:
        """See `handshake.Owner`."""
        del self._handshakes[secure]
        kind = _kind(error)
        self.refused[kind] += 1
        if (held := self._logged.admit(kind)) is not None:
            self._log.info("handshake failed", kind=kind, client_ip=address[0], before=held)
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

    def _log_identity(self, peer: Peer) -> None:
        if peer.refusal is None:
            return
        reason = peer.refusal.reason
        self.refused[reason] += 1
        if (held := self._logged.admit(reason)) is not None:
            self._log.info("identity refused", reason=reason, client_ip=peer.client_ip, before=held)


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


def _within_descriptors(connections: int) -> int:
    """Raise the limit of open files for so many connections; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, wanted - RESERVED)


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
