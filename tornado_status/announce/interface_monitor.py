"""Keeps UDP sinks open as interfaces come, go and change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import structlog

from tornado_status.announce.errno_hints import errno_name, hint
from tornado_status.announce.interfaces import read_interfaces, watch_interfaces
from tornado_status.announce.udp_sink import UdpSink
from tornado_status.errors import ConfigError
from tornado_status.runtime.rate_limit import RateLimit
from tornado_status.runtime.waiting import wait_set

# Changes come in bursts: an interface goes up, then its addresses are set, one by one.
SETTLE_S = 0.2
# Routes are not watched, because on a router they change all day. A sink without one tries again.
RETRY_S = 3.0
_BURST = 64 * 1024


class InterfaceMonitor:
    """Refreshes `sinks` at every change of an interface, and while one has a problem."""

    def __init__(self, sinks: Sequence[UdpSink], warnings: RateLimit) -> None:
        self._sinks = sinks
        self._warnings = warnings
        self._log = structlog.get_logger()

    def open(self) -> None:
        """Open all sinks. One that cannot be opened now is tried again.

        Raises `ConfigError` if an interface does not exist.
        """
        if not self._sinks:
            return
        interfaces = read_interfaces()
        for sink in self._sinks:
            sink.check(interfaces)
        for sink in self._sinks:
            sink.refresh(interfaces)
            self._report(sink, None)
            doubt = sink.doubt(interfaces)
            if doubt is not None:
                self._log.warning("broadcast address unknown", target=sink.target, reason=doubt)

    async def run(self) -> None:
        """Watch until cancelled."""
        changed = asyncio.Event()
        with contextlib.ExitStack() as stack:
            watched = self._watch(stack, changed)
            changed.set()  # an interface may have changed before the watch began
            while True:
                broken = any(sink.problem for sink in self._sinks)
                if broken or not watched:
                    await wait_set(changed, RETRY_S)
                else:
                    await changed.wait()
                await asyncio.sleep(SETTLE_S)
                changed.clear()
                self._refresh()

    def _watch(self, stack: contextlib.ExitStack, changed: asyncio.Event) -> bool:
        try:
            sock = stack.enter_context(watch_interfaces())
        except OSError as error:
            self._log.warning(
                "interface changes unknown, polling",
                reason=error.strerror,
            )
            return False
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, _discard, sock, changed)
        stack.callback(loop.remove_reader, sock)
        return True

    def _refresh(self) -> None:
        try:
            interfaces = read_interfaces()
        except ConfigError as error:
            if self._warnings.allow("interfaces") is not None:
                self._log.warning("interfaces cannot be read", reason=str(error))
            return
        for sink in self._sinks:
            before = sink.problem
            sink.refresh(interfaces)
            self._report(sink, before)

    def _report(self, sink: UdpSink, before: OSError | None) -> None:
        problem = sink.problem
        if problem is None:
            if before is not None:
                self._log.info("announcing again", target=sink.target, interface=sink.via)
            return
        name = errno_name(problem)
        if before is not None and errno_name(before) == name:
            return
        # The same key as for a datagram that is not sent for the same reason.
        suppressed = self._warnings.allow((sink.target, sink.via, name))
        if suppressed is not None:
            self._log.warning(
                "cannot announce, trying again",
                target=sink.target,
                interface=sink.via,
                errno=name,
                hint=hint(problem),
                suppressed=suppressed,
            )


def _discard(sock: socket.socket, changed: asyncio.Event) -> None:
    changed.set()
    with contextlib.suppress(OSError):  # ENOBUFS: the kernel dropped some
        while sock.recv(_BURST):
            pass
