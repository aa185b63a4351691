"""Accepting plain TCP connections, from trusted proxies only."""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable

from tornado_status.config.settings import ServerSettings
from tornado_status.ingress.check_in_acceptor import CheckInAcceptor
from tornado_status.ingress.peer_stream import READ_CHUNK, CheckInStream
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.runtime.base_acceptor import Address

MAX_BUFFER = 128 * 1024  # per connection: heads carry certificates, and proxies are few


class PlainAcceptor(CheckInAcceptor):
    """Passes connections of `proxies` to `on_stream`; closes others unread."""

    handshakes = 0  # nothing happens before the first request

    def __init__(
        self,
        settings: ServerSettings,
        proxies: TrustedProxies,
        on_stream: Callable[[CheckInStream, Address], None],
        refusals: Refusals,
    ) -> None:
        super().__init__(settings, refusals)
        self._proxies = proxies
        self._on_stream = on_stream

    def _begin(self, connection: socket.socket, address: Address) -> None:
        if address[0] not in self._proxies:
            connection.close()
            self.refusals.count(
                "proxy-not-trusted",
                "connection refused",
                per=address[0],
                level=logging.WARNING,
                reason="not from one of ingress.trusted_proxies",
                client_ip=address[0],
            )
            return
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            connection.close()  # the peer is gone already
            return
        stream = CheckInStream(connection, max_buffer_size=MAX_BUFFER, read_chunk_size=READ_CHUNK)
        # Not counted by address: all clients behind the proxy have its address.
        self.count_open(1)
        stream.on_closed = functools.partial(self.count_open, -1)
        stream.linger = self.linger
        self._on_stream(stream, address)
