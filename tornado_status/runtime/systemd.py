"""Telling systemd how it goes, as sd_notify(3) says: ready, reloading, stopping, still turning."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping

import structlog

BEAT_S = 5.0  # without a watchdog: how soon a change shows in `systemctl status`
EXTEND_S = 30.0  # asked for with each beat while starting: the database may take its time
RETRY_S = 0.1  # when systemd's queue is full
MAX_UNSENT = 16  # then systemd does not read at all


class SystemdNotifier:
    """Speaks to the service manager that started us; silent where there is none."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """`address` is a path, or begins with @ for the abstract namespace; "" for nobody."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog_s = watchdog_s if address else None
        self._log = structlog.get_logger()
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque(maxlen=MAX_UNSENT)
        self._retry: asyncio.TimerHandle | None = None
        self._ready = False
        self._status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> SystemdNotifier:
        """Take NOTIFY_SOCKET and WATCHDOG_USEC out of `environment`.

        Out of it, because PostgreSQL, which may be our child, speaks to systemd too.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        meant = pid in ("", str(os.getpid())) and watchdog.isdecimal() and int(watchdog) > 0
        return cls(address, int(watchdog) / 1e6 if meant else None)

    def ready(self, status: str) -> None:
        """Started: what waits for us may go on."""
        self._ready = True
        # In the same message: who waits for us looks at the status next.
        self._send("\n".join(["READY=1", *self._changed(status)]))

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Within it the configuration is read anew; behind it we are ready again, or as before."""
        if not self._ready:
            yield
            return
        # By its moment systemd tells our answer to its signal from an earlier reload.
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    def beat(self, healthy: bool, status: str) -> None:
        """Say that the loop turns, where it is `healthy`, and the status where it has changed."""
        said = []
        if not self._ready:
            said.append(f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1e6)}")
        if healthy and self._watchdog_s is not None:
            said.append("WATCHDOG=1")
        said += self._changed(status)
        if said:
            self._send("\n".join(said))

    async def run(self, healthy: Callable[[], bool], status: Callable[[], str]) -> None:
        """Beat until cancelled, twice as often as the watchdog wants it."""
        if not self._address:
            return
        interval_s = min(BEAT_S, (self._watchdog_s or float("inf")) / 2)
        while True:
            self.beat(healthy(), status())
            await asyncio.sleep(interval_s)

    def close(self) -> None:
        """Send what can be sent, and say no more."""
        self._flush()
        self._give_up()

    def _changed(self, status: str) -> list[str]:
        if status == self._status:
            return []
        self._status = status
        return ["STATUS=" + " ".join(status.split())]

    def _send(self, text: str) -> None:
        if self._address:
            self._unsent.append(text.encode())
            self._flush()

    def _flush(self) -> None:
        try:
            if self._socket is None and self._unsent:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
                self._socket.connect(self._address)
            while self._socket is not None and self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        except OSError as error:
            self._log.warning("NOTIFY_SOCKET does not work", reason=error.strerror)
            self._give_up()

    def _try_again(self) -> None:
        self._retry = None
        self._flush()

    def _give_up(self) -> None:
        self._address = ""
        self._unsent.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
