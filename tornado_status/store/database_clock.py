"""The database's time of day, held against a clock of this machine that cannot be set."""

from __future__ import annotations

import sys
import time

# A change beyond it is a clock that was set, and not a statement that waited for its turn.
MOVED_S = 5.0


def elapsed_s() -> float:
    """Return seconds that only go forward, those of a suspended machine included."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class DatabaseClock:
    """Knows by how much the database's clock was set, and whether it has been steady since."""

    def __init__(self, steady_s: float) -> None:
        self._steady_s = steady_s
        self._steady_since = elapsed_s()
        self._seen: tuple[float, float] | None = None  # the database's time, and ours

    def observe(self, epoch_s: float) -> float:
        """Take the database's time of this moment; return by how much it was set, or 0."""
        now = elapsed_s()
        moved_s = 0.0 if self._seen is None else epoch_s - self._seen[0] - (now - self._seen[1])
        self._seen = epoch_s, now
        if abs(moved_s) < MOVED_S:
            return 0.0
        self._steady_since = now
        return moved_s

    def steady_time(self) -> float | None:
        """Return the time of day that both clocks have reached; None unless it is steady.

        It goes on from the last observation by our own clock: a database whose clock was set since
        does not change it.
        """
        now = elapsed_s()
        if self._seen is None or now - self._steady_since < self._steady_s:
            return None
        return min(self._seen[0] + now - self._seen[1], time.time())
