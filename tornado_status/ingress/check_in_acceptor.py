"""The listening sockets of the check-in port, and how many connections it takes."""

from __future__ import annotations

import functools
import ipaddress
import resource
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence

from tornado.netutil import bind_sockets

from tornado_status.config.settings import ServerSettings
from tornado_status.errors import ConfigError
from tornado_status.ingress.lingering import Lingering
from tornado_status.ingress.refusals import Refusals
from tornado_status.model.records import normalise_ip
from tornado_status.observe.counters import SECONDS, Histogram
from tornado_status.runtime.base_acceptor import Acceptor, Address
from tornado_status.runtime.listening import bind_address, error_text

BACKLOG = 1024  # connections that the kernel completes while we are busy; it caps it by somaxconn
DEFER_S = 1  # a client that has sent nothing by then is accepted all the same
RESERVED = 64  # descriptors for the database, announcements, files and the management port


def bind(settings: ServerSettings) -> list[socket.socket]:
    """Bind the check-in port. Raises `ConfigError` if it is taken or the address is not local."""
    try:
        return bind_sockets(
            settings.port,
            address=bind_address(settings.host),
            backlog=BACKLOG,
            reuse_port=settings.reuse_port,
        )
    except OSError as error:
        raise ConfigError(error_text("server", settings.host, settings.port, error)) from error


class CheckInAcceptor(Acceptor, ABC):
    """Accepts connections to the check-in port, within its limits."""

    close_longest_idle: Callable[[], bool]  # of the connections that had a request; False: none

    def __init__(self, settings: ServerSettings, refusals: Refusals) -> None:
        limit = _within_descriptors(settings.max_connections)
        super().__init__(limit, self._begin, self._make_room)
        self._max_per_address = settings.max_connections_per_address
        self._by_address: Counter[str] = Counter()
        self._lingering: dict[Lingering, None] = {}  # the oldest first
        self.refusals = refusals
        self.durations = Histogram(SECONDS)

    @property
    @abstractmethod
    def handshakes(self) -> int:
        """The number of connections that have not come to their first request."""

    @abstractmethod
    def _begin(self, connection: socket.socket, address: Address) -> None:
        """Take a new connection. Count it with `opened`, and with `closed` at its end."""

    def close(self) -> None:
        """Stop accepting, and drop connections that linger or have not come to a request."""
        self.stop_accepting()
        for lingering in list(self._lingering):
            lingering.close()

    def linger(
        self, connection: socket.socket, on_close: Callable[[], None], *, half_close: bool = True
    ) -> None:
        """Close a connection without a reset, and call `on_close` then: see `Lingering`."""

        def closed(lingering: Lingering) -> None:
            del self._lingering[lingering]
            on_close()

        self._lingering[Lingering(self.loop, connection, closed, half_close=half_close)] = None

    def listen(self, sockets: Sequence[socket.socket]) -> None:
        """See `Acceptor.listen`."""
        for sock in sockets:
            # The kernel wakes us when a client has sent something: a silent one costs nothing.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)
        super().listen(sockets)

    def _make_room(self) -> bool:
        if self._lingering:
            next(iter(self._lingering)).close()
            return True
        if not self.close_longest_idle():
            return False
        self.refusals.count("crowded-out")
        return True

    def has_room_for(self, client_ip: str) -> bool:
        """Return whether an address may have one more connection; count a refusal if not."""
        if not self._max_per_address or self._by_address[site(client_ip)] < self._max_per_address:
            return True
        self.refusals.count(
            "too-many-connections", "connection limit of an address reached", client_ip=client_ip
        )
        return False

    def opened(self, client_ip: str) -> None:
        """Count a connection of an address."""
        self.count_open(1)
        self._by_address[site(client_ip)] += 1

    def closed(self, client_ip: str) -> None:
        """Count the end of a connection that was `opened`."""
        counted = site(client_ip)
        self._by_address[counted] -= 1
        if not self._by_address[counted]:
            del self._by_address[counted]
        self.count_open(-1)


@functools.lru_cache(4096)
def site(client_ip: str) -> str:
    """Return what counts as one address: of IPv6 the /64, which one host has as a whole."""
    known = normalise_ip(client_ip)
    return known if "." in known else str(ipaddress.ip_network((known, 64), strict=False))


def _within_descriptors(connections: int) -> int:
    """Raise the limit of open files for so many connections; return how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(1, wanted - RESERVED)
