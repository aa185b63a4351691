"""The one deadline of a stop: how much time is left, and that no part takes more than that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

# For a part whose turn comes when nothing is left: enough to close what hangs on nobody else.
LEAST_S = 0.2


class Deadline:
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
