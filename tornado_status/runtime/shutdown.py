"""Graceful shutdown: one deadline for all parts, and the end of the process if it is missed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from tornado_status.runtime import background_output

LEAST_S = 0.2  # for a part when no time is left: enough to close what depends on no other party
SAME_S = 0.5  # two signals within it are one: some programs forward Ctrl-C to us a second time
REMAINDER_S = 2.0  # behind the deadline, for a part that hangs where no code expects it
EXIT_OVERDUE = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownDeadline:
    """The deadline of a shutdown: `seconds` from its beginning."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left_behind: list[str] = []  # parts still running: `asyncio.run` would wait for them
        self._loop = asyncio.get_running_loop()
        self._at: float | None = None

    def begin(self) -> None:
        """Start the clock. Idempotent."""
        if self._at is None:
            self._at = self._loop.time() + self.seconds

    def left(self, until: float = 1.0) -> float:
        """Return the seconds until a share of the time is over, by default all of it.

        At least `LEAST_S`, also behind the deadline. All of the time is left before `begin`.
        """
        passed = 0.0 if self._at is None else self._loop.time() - self._at + self.seconds
        return max(LEAST_S, self.seconds * until - passed)

    async def bound(self, part: str, stop: Callable[[], Awaitable[None]]) -> None:
        """Run `stop` until it is done or the deadline is over.

        A part that hangs is logged by its name, cancelled and left behind.
        """
        self.begin()
        stopping = asyncio.ensure_future(stop())
        _, late = await asyncio.wait({stopping}, timeout=self.left())
        if late:
            structlog.get_logger().warning("part did not stop in time", part=part)
            stopping.cancel()
            _, late = await asyncio.wait({stopping}, timeout=LEAST_S)
            if late:
                self.left_behind.append(part)
        if not late and not stopping.cancelled():
            await stopping


class ShutdownSignals:
    """Handles SIGTERM and SIGINT. Create it in the main thread.

    The first signal sets `received`. A second one, later than `SAME_S`, ends the process by that
    signal. A shutdown that takes longer than `seconds` and `REMAINDER_S` ends it with status 1,
    even if the event loop hangs. Each end calls `kill` first, which ends child processes.
    """

    def __init__(self, seconds: float, on_signal: Callable[[], None]) -> None:
        self.received = asyncio.Event()
        self.kill: Callable[[], None] = lambda: None
        self._seconds = seconds
        self._received_at: float | None = None
        self._on_signal = on_signal
        self._loop = asyncio.get_running_loop()
        for signum in SIGNALS:
            # Not with the loop's add_signal_handler: the loop itself may hang. Removing such a
            # handler, as at the loop's end, leaves the default action for a moment.
            signal.signal(signum, self._handle)
            signal.siginterrupt(signum, False)

    def leave(self) -> NoReturn:
        """End the process with status 0, without waiting for the parts left in it."""
        try:
            self.kill()
        finally:
            background_output.flush()
            os._exit(0)

    def _handle(self, signum: int, _: object) -> None:
        if self._received_at is None:
            self._received_at = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself meanwhile
                self._loop.call_soon_threadsafe(self._begin)
        elif time.monotonic() - self._received_at >= SAME_S:
            self._end_by(signum)

    def _begin(self) -> None:
        self.received.set()
        self._on_signal()
        # Not in the handler: it may interrupt the start of a thread, which holds a lock.
        overdue = threading.Timer(self._seconds + REMAINDER_S, self._end_overdue)
        overdue.daemon = True
        overdue.start()

    def _end_by(self, signum: int) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a third signal must not interrupt this
        try:
            self.kill()
        finally:
            background_output.flush()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            os._exit(128 + signum)  # the first process of a container ignores its own signals

    def _end_overdue(self) -> None:
        structlog.get_logger().error("shutdown overdue, ending the process")
        try:
            self.kill()
        finally:
            background_output.flush()
            os._exit(EXIT_OVERDUE)
