"""Listening sockets: taking connections from them, and how many there may be.

What to do with a connection is for a subclass to say: see `acceptor` (TLS) and `plain`.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

import structlog
from tornado.netutil import bind_sockets

from tornado_status.config import ServerSettings
from tornado_status.errors import ConfigError
from tornado_status.ingress.handshake import Address
from tornado_status.observe.counters import SECONDS, Histogram
from tornado_status.runtime.rate_limit import RateLimit

BACKLOG = 1024  # connections that the kernel completes while we are busy; it caps it by somaxconn
MAX_HANDSHAKES = 1000  # under way at once; the next ones wait in the kernel's backlog
ACCEPTS_A_TURN = 64  # then those already connected have their turn
DEFER_S = 1  # a client that has said nothing by then is accepted all the same
FULL_PAUSE_S = 0.1  # after running out of descriptors: those connected go on, the rest waits
RESERVED = 64  # descriptors for the database, announcements, files and the management port

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def bind(settings: ServerSettings) -> list[socket.socket]:
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


class Acceptor(ABC):
    """Takes connections from bound sockets, as many as allowed, to `_begin`.

    `refused` counts those that were turned away, by kind.
    """

    def __init__(self, settings: ServerSettings, refused: Counter[str]) -> None:
        self._max_connections = _within_descriptors(settings.max_connections)
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._max_per_address = settings.max_connections_per_address
        self._connections: Counter[str] = Counter()
        self._full = False
        self._log = structlog.get_logger()
        self._logged = RateLimit()
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self.refused = refused
        self.durations = Histogram(SECONDS)

    @property
    def connections(self) -> int:
        """Those open now, with the handshakes under way."""
        return self._open

    @property
    def handshakes(self) -> int:
        """Those under way now, and whatever else has not come to a first request."""
        return self._beginning()

    @abstractmethod
    def _begin(self, connection: socket.socket, address: Address) -> None:
        """Take a new connection. Whoever counts it with `_opened` calls `_closed` at its end."""

    @abstractmethod
    def _beginning(self) -> int:
        """Return how many connections have not come as far as their first request."""

    @abstractmethod
    def close(self) -> None:
        """Stop accepting, and drop whatever has not come as far as its first request."""

    def stop_accepting(self) -> None:
        """Close the listening sockets. What was accepted goes on."""
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening = []

    async def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False where that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept. The sockets are ours from here on."""
        for sock in sockets:
            # Wake us when a client has spoken, not before: a mute one costs us nothing.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)
        self._listening += sockets
        self._watch()

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
        if (suppressed := self._logged.allow("descriptors")) is not None:
            self._log.error(
                "cannot accept connections", reason=error.strerror, suppressed=suppressed
            )
        self._loop.remove_reader(listening)

        def resume() -> None:
            if listening in self._listening and not self._full:
                self._loop.add_reader(listening, self._accept, listening)

        self._loop.call_later(FULL_PAUSE_S, resume)

    def _is_full(self) -> bool:
        if self._beginning() >= MAX_HANDSHAKES:
            return True
        if self._open < self._max_connections:
            return False
        if (suppressed := self._logged.allow("connections")) is not None:
            limit = self._max_connections
            self._log.warning("as many connections as allowed", limit=limit, suppressed=suppressed)
        return True

    def _has_room_for(self, client_ip: str) -> bool:
        if not self._max_per_address or self._connections[client_ip] < self._max_per_address:
            return True
        self.refused["too-many-connections"] += 1
        if (suppressed := self._logged.allow("address")) is not None:
            self._log.info("too many connections", client_ip=client_ip, suppressed=suppressed)
        return False

    def _opened(self, client_ip: str) -> None:
        self._count_open(1)
        self._connections[client_ip] += 1

    def _closed(self, client_ip: str) -> None:
        self._count_open(-1)
        self._connections[client_ip] -= 1
        if not self._connections[client_ip]:
            del self._connections[client_ip]
        self._look_again()

    def _count_open(self, change: int) -> None:
        self._open += change
        if self._open:
            self._none_open.clear()
        else:
            self._none_open.set()

    def _look_again(self) -> None:
        if self._full and not self._is_full():
            self._full = False
            self._watch()


def _within_descriptors(connections: int) -> int:
    """Raise the limit of open files for so many connections; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, wanted - RESERVED)
