"""Keeps UDP outlets open as interfaces come, go and change: told by the kernel, or by trying."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import structlog

from tornado_status.announce.errno_hints import advice, errno_name
from tornado_status.announce.interfaces import read_interfaces, watch_interfaces
from tornado_status.announce.udp_sink import UdpSink
from tornado_status.errors import ConfigError
from tornado_status.runtime.rate_limit import RateLimit

# Changes come in bursts: an interface that goes up, its addresses, one by one.
SETTLE_S = 0.2
# Routes are not watched (on a router they change all day), so what has none is tried again.
RETRY_S = 3.0
_BURST = 64 * 1024


class Following:
    """Refreshes `outlets` at every change of an interface, and while one has a problem."""

    def __init__(self, outlets: Sequence[UdpSink], warnings: RateLimit) -> None:
        self._outlets = outlets
        self._warnings = warnings
        self._log = structlog.get_logger()

    def open(self) -> None:
        """Open all outlets; what cannot be reached now is tried again.

        Raises `ConfigError` where an interface does not exist.
        """
        if not self._outlets:
            return
        interfaces = read_interfaces()
        for outlet in self._outlets:
            outlet.check(interfaces)
        for outlet in self._outlets:
            outlet.refresh(interfaces)
            self._tell(outlet, None)
            doubt = outlet.doubt(interfaces)
            if doubt is not None:
                self._log.warning("is it a broadcast address?", target=outlet.target, reason=doubt)

    async def run(self) -> None:
        """Follow until cancelled."""
        changed = asyncio.Event()
        with contextlib.ExitStack() as stack:
            watched = self._watch(stack, changed)
            changed.set()  # whatever happened before we began to watch
            while True:
                broken = any(outlet.problem for outlet in self._outlets)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S if broken or not watched else None):
                        await changed.wait()
                await asyncio.sleep(SETTLE_S)
                changed.clear()
                self._refresh()

    def _watch(self, stack: contextlib.ExitStack, changed: asyncio.Event) -> bool:
        try:
            sock = stack.enter_context(watch_interfaces())
        except OSError as error:
            self._log.warning(
                "interfaces are looked at now and then: the kernel tells no changes",
                reason=error.strerror,
            )
            return False
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, _take, sock, changed)
        stack.callback(loop.remove_reader, sock)
        return True

    def _refresh(self) -> None:
        try:
            interfaces = read_interfaces()
        except ConfigError as error:
            if self._warnings.allow("interfaces") is not None:
                self._log.warning(str(error))
            return
        for outlet in self._outlets:
            before = outlet.problem
            outlet.refresh(interfaces)
            self._tell(outlet, before)

    def _tell(self, outlet: UdpSink, before: OSError | None) -> None:
        problem = outlet.problem
        if problem is None:
            if before is not None:
                self._log.info("announcing again", target=outlet.target, interface=outlet.via)
            return
        name = errno_name(problem)
        if before is not None and errno_name(before) == name:
            return
        # The same kind as of a datagram that is not sent for the same reason.
        suppressed = self._warnings.allow((outlet.target, outlet.via, name))
        if suppressed is not None:
            self._log.warning(
                "cannot announce, trying again",
                target=outlet.target,
                interface=outlet.via,
                errno=name,
                advice=advice(problem),
                suppressed=suppressed,
            )


def _take(sock: socket.socket, changed: asyncio.Event) -> None:
    changed.set()
    with contextlib.suppress(OSError):  # ENOBUFS: there was more than fits
        while sock.recv(_BURST):
            pass
