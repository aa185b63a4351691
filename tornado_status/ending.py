"""The process's end, when it may wait no longer: a second signal, or a stop that is overdue."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import structlog

SAME_S = 0.5  # Ctrl-C comes twice at once where a program between forwards it, too: that is one
REMAINDER_S = 2.0  # beyond the deadline of a stop: for what hangs in a way that nobody foresaw
TELL_S = 0.5  # for the log's last line
EXIT_OVERDUE = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
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
