"""Shutdown: one deadline for every part, and the end of the process where a stop is overdue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

# For a part whose turn comes when nothing is left: enough to close what hangs on nobody else.
LEAST_S = 0.2
SAME_S = 0.5  # Ctrl-C comes twice at once where a program between forwards it, too: that is one
REMAINDER_S = 2.0  # beyond the deadline of a stop: for what hangs in a way that nobody foresaw
TELL_S = 0.5  # for the log's last line
EXIT_OVERDUE = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownDeadline:
    """Of a stop that may take `seconds` once it has begun. Until then all of it is left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left_behind: list[str] = []  # parts that run on, and that `asyncio.run` would wait for
        self._loop = asyncio.get_running_loop()
        self._at: float | None = None

    def begin(self) -> None:
        """From now on the time runs. Twice is once."""
        if self._at is None:
            self._at = self._loop.time() + self.seconds

    def left(self, until: float = 1.0) -> float:
        """Return the seconds until a share of the time is over, by default all of it.

        `LEAST_S` at least, also for whom others have left nothing.
        """
        passed = 0.0 if self._at is None else self._loop.time() - self._at + self.seconds
        return max(LEAST_S, self.seconds * until - passed)

    async def bound(self, part: str, stop: Callable[[], Awaitable[None]]) -> None:
        """Run `stop` and wait until it is done or the deadline is over.

        What hangs is cancelled, told to the log by its name, and waited for no more.
        """
        self.begin()
        stopping = asyncio.ensure_future(stop())
        _, late = await asyncio.wait({stopping}, timeout=self.left())
        if late:
            structlog.get_logger().warning("does not stop in time, left behind", part=part)
            stopping.cancel()
            _, late = await asyncio.wait({stopping}, timeout=LEAST_S)
            if late:
                self.left_behind.append(part)
        if not late and not stopping.cancelled():
            await stopping


class ShutdownSignals:
    """Listens for SIGTERM and SIGINT. `kill` ends at once what must not outlive the process.

    `told` is set by the first of them. A second one, unless it comes with the first, ends the
    process by that signal; so does, with status 1, a stop that takes `seconds` and `REMAINDER_S`,
    even where the event loop hangs. To be made in the main thread.
    """

    def __init__(self, seconds: float, on_told: Callable[[], None]) -> None:
        self.told = asyncio.Event()
        self.kill: Callable[[], None] = lambda: None
        self._seconds = seconds
        self._told_at: float | None = None
        self._on_told = on_told
        self._loop = asyncio.get_running_loop()
        for signum in SIGNALS:
            # Not the loop's own way: the loop may be what hangs, and whoever takes a handler away
            # from it, as its end does, has the default action in force for a moment.
            signal.signal(signum, self._signaled)
            signal.siginterrupt(signum, False)

    def leave(self) -> NoReturn:
        """End the process, with status 0, and wait for nothing that is left in it."""
        try:
            sys.stdout.flush()
            self.kill()
        finally:
            os._exit(0)

    def _signaled(self, signum: int, _: object) -> None:
        if self._told_at is None:
            self._told_at = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself meanwhile
                self._loop.call_soon_threadsafe(self._tell)
        elif time.monotonic() - self._told_at >= SAME_S:
            self._end_by(signum)

    def _tell(self) -> None:
        self.told.set()
        self._on_told()
        # Here, where no thread is just being begun: a handler may come while that has its lock.
        overdue = threading.Timer(self._seconds + REMAINDER_S, self._overdue)
        overdue.daemon = True
        overdue.start()

    def _end_by(self, signum: int) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a third one must not come in between
        try:
            self.kill()
        finally:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            os._exit(128 + signum)  # the first process of a container ignores its own signals

    def _overdue(self) -> None:
        # Where nobody reads standard error any more, the line would wait for ever, and we with it.
        with contextlib.suppress(RuntimeError):  # no thread can be had
            telling = threading.Thread(target=_tell_overdue, daemon=True)
            telling.start()
            telling.join(TELL_S)
        try:
            self.kill()
        finally:
            os._exit(EXIT_OVERDUE)


def _tell_overdue() -> None:
    structlog.get_logger().error("the stop is overdue, ending at once")
