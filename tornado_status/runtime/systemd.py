"""sd_notify(3): READY, RELOADING, STOPPING and watchdog keep-alives."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping

import structlog

BEAT_S = 5.0  # without a watchdog: how soon a change shows in `systemctl status`
EXTEND_S = 30.0  # asked for with each beat while starting: the database may take its time


class SystemdNotifier:
    """Sends the state of the service to systemd; does nothing without it.

    A datagram that systemd does not take at once is dropped. The next beat repeats the state.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """`address` is a path, an abstract address that begins with @, or "" for none."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = watchdog_s if address else None
        self._log = structlog.get_logger()
        self._socket: socket.socket | None = None
        self._is_ready = False
        self._ready_sent = True  # False while READY=1 has to be sent
        self._status_sent = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> SystemdNotifier:
        """Take NOTIFY_SOCKET and WATCHDOG_USEC out of `environment`.

        An embedded PostgreSQL, our child, would notify systemd too.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        ours = pid in ("", str(os.getpid())) and watchdog.isdecimal() and int(watchdog) > 0
        return cls(address, int(watchdog) / 1e6 if ours else None)

    def ready(self, status: str) -> None:
        """Send that the service has started, with its status in the same message."""
        self._is_ready, self._ready_sent = True, False
        self._send_state([], status)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Send that the configuration is reloaded, and that the service is ready afterwards."""
        if not self._is_ready:
            yield
            return
        # systemd needs the time, to tell this reload from an earlier one.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(["RELOADING=1", f"MONOTONIC_USEC={now_us}"])
        try:
            yield
        finally:
            self._ready_sent = False
            self._send_state([], self._status_sent)

    def stopping(self) -> None:
        """Send that the service is shutting down."""
        self._send(["STOPPING=1", "STATUS=stopping"])

    def beat(self, healthy: bool, status: str) -> None:
        """Send a watchdog keep-alive if `healthy`, and the state if systemd does not have it."""
        lines = []
        if not self._is_ready:
            lines.append(f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1e6)}")
        if healthy and self._watchdog_s is not None:
            lines.append("WATCHDOG=1")
        self._send_state(lines, status)

    async def run(self, healthy: Callable[[], bool], status: Callable[[], str]) -> None:
        """Beat until cancelled, twice as often as the watchdog expects it."""
        interval_s = min(BEAT_S, (self._watchdog_s or float("inf")) / 2)
        while self._address:
            self.beat(healthy(), status())
            await asyncio.sleep(interval_s)

    def close(self) -> None:
        """Close the socket."""
        self._address = ""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_state(self, lines: list[str], status: str) -> None:
        if not self._ready_sent:
            lines = ["READY=1", *lines]
        if status != self._status_sent:
            lines = [*lines, "STATUS=" + " ".join(status.split())]
        if lines and self._send(lines):
            self._ready_sent, self._status_sent = True, status

    def _send(self, lines: list[str]) -> bool:
        """Send a message; return False if it was dropped."""
        if not self._address:
            return False
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.connect(self._address)
            self._socket.send("\n".join(lines).encode())
        except BlockingIOError:
            return False
        except OSError as error:
            self._log.warning("NOTIFY_SOCKET does not work", reason=error.strerror)
            self.close()
            return False
        return True
