"""Accepting plain TCP connections, from trusted proxies and from nobody else."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from tornado_status.config import ServerSettings
from tornado_status.ingress.acceptor import Acceptor
from tornado_status.ingress.handshake import Address
from tornado_status.ingress.iostream import READ_CHUNK, PlainStream
from tornado_status.ingress.trusted_proxies import TrustedProxies

MAX_BUFFER = 128 * 1024  # per connection: heads carry certificates, and proxies are few


class PlainAcceptor(Acceptor):
    """Takes connections of `proxies` to `on_connection`; those of others are closed unread."""

    def __init__(
        self,
        settings: ServerSettings,
        proxies: TrustedProxies,
        on_connection: Callable[[PlainStream, Address], None],
        refused: Counter[str],
    ) -> None:
        super().__init__(settings, refused)
        self._proxies = proxies
        self._on_connection = on_connection

    def close(self) -> None:
        """See `Acceptor`."""
        self.stop_accepting()

    def _beginning(self) -> int:
        return 0  # nothing happens before the first request

    def _begin(self, connection: socket.socket, address: Address) -> None:
        if address[0] not in self._proxies:
            connection.close()
            self.refused["proxy-not-trusted"] += 1
            if (suppressed := self._logged.allow(address[0])) is not None:
                self._log.warning(
                    "connection refused",
                    reason="not from one of ingress.trusted_proxies",
                    client_ip=address[0],
                    suppressed=suppressed,
                )
            return
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            connection.close()  # gone before we looked
            return
        stream = PlainStream(connection, max_buffer_size=MAX_BUFFER, read_chunk_size=READ_CHUNK)
        # Not counted for its address: it is the address of everybody behind the proxy.
        self._count_open(1)
        stream.on_closed = self._ended
        self._on_connection(stream, address)

    def _ended(self) -> None:
        self._count_open(-1)
        self._look_again()
