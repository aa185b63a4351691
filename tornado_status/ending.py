"""The process's end, when it may wait no longer: a second signal, or a stop that is overdue."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable

import structlog

SAME_S = 0.5  # Ctrl-C comes twice at once where a program between forwards it, too: that is one
REMAINDER_S = 2.0  # beyond the deadline of a stop: for what hangs in a way that nobody foresaw
EXIT_OVERDUE = 1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Listens for SIGTERM and SIGINT. `kill` ends at once what must not outlive the process.

    `told` is set by the first of them. A second one, unless it comes with the first, ends the
    process by that signal; so does, with status 1, a stop that takes `seconds` and `REMAINDER_S`,
    even where the event loop hangs.
    """

    def __init__(self, seconds: float, on_told: Callable[[], None]) -> None:
        self.told = asyncio.Event()
        self.kill: Callable[[], None] = lambda: None
        self._seconds = seconds
        self._told_at = float("-inf")
        self._on_told = on_told
        self._loop = asyncio.get_running_loop()
        for signum in SIGNALS:
            self._loop.add_signal_handler(signum, self._first)

    def _first(self) -> None:
        self.told.set()
        self._told_at = time.monotonic()
        self._on_told()
        for signum in SIGNALS:
            self._loop.remove_signal_handler(signum)
            # Not in the loop, which may be what hangs.
            signal.signal(signum, self._second)
        overdue = threading.Timer(self._seconds + REMAINDER_S, self._overdue)
        overdue.daemon = True
        overdue.start()

    def _second(self, signum: int, _: object) -> None:
        if time.monotonic() - self._told_at < SAME_S:
            return
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # a third one must not come in between
        self.kill()
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        os._exit(128 + signum)  # the first process of a container ignores its own signals

    def _overdue(self) -> None:
        structlog.get_logger().error("the stop is overdue, ending at once")
        self.kill()
        os._exit(EXIT_OVERDUE)
