"""Reads the UDP sockets on the event loop, and hands on each datagram."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

from listeners.operator_warnings import OperatorWarnings
from listeners.receive.sockets import Sockets
from tornado_status.wire.sealed_datagram import MAX_SEALED

DRAIN = 256  # datagrams read from a socket before the loop does anything else
REJOIN_S = 3.0  # how often the memberships in groups are checked

# Gets the bytes and the sender's address, whose first two parts are host and port.
OnDatagram = Callable[[bytes, Sequence[object]], None]


class UdpReceiver:
    """Reads `sockets`, and closes them. Start it on the event loop."""

    def __init__(
        self, sockets: Sockets, on_datagram: OnDatagram, warnings: OperatorWarnings
    ) -> None:
        self._sockets = sockets
        self._on_datagram = on_datagram
        self._warnings = warnings
        self._transports: list[asyncio.BaseTransport] = []

    async def start(self) -> None:
        """Begin to read."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets.sockets:
            try:
                loop.add_reader(sock, self._drain, sock)
            except NotImplementedError:  # Windows' proactor has only endpoints
                transport, _ = await loop.create_datagram_endpoint(
                    lambda: _Endpoint(self._on_datagram), sock=sock
                )
                self._transports.append(transport)

    async def keep_joined(self) -> None:
        """Join the groups again as interfaces come and go, until cancelled."""
        while True:
            await asyncio.sleep(REJOIN_S)
            for change in self._sockets.rejoin():
                self._warnings.warn(change)

    def close(self) -> None:
        """Close the sockets."""
        loop = asyncio.get_running_loop()
        for transport in self._transports:
            transport.close()
        for sock in self._sockets.sockets:
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_reader(sock)
        self._sockets.close()

    def _drain(self, sock: socket.socket) -> None:
        for _ in range(DRAIN):
            try:
                # One byte more than the largest datagram shows that it was longer.
                payload, source = sock.recvfrom(MAX_SEALED + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # of one datagram; the next may be read
                self._warnings.warn_limited("dropped a datagram", "receive", str(error))
                return
            self._on_datagram(payload, source)


class _Endpoint(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: OnDatagram) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, payload: bytes, source: tuple[object, ...]) -> None:
        self._on_datagram(payload, source)
