"""The rate limit for log lines that a peer can cause. The clock is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_KINDS = 256  # different things remembered by one RateLimit; a peer may invent more


class RateLimit:
    """Lets one of each kind through per interval, and says how many it held back.

    Bounded: beyond `MAX_KINDS` kinds all others count as one.
    """

    def __init__(self, interval_s: float = 60.0, clock: Callable[[], float] = time.monotonic):
        self._interval_s = interval_s
        self._clock = clock
        self._seen: dict[object, tuple[float, int]] = {}

    def allow(self, kind: object) -> int | None:
        """Return None to stay silent, else how many of this kind were silenced before."""
        now = self._clock()
        if kind not in self._seen and len(self._seen) >= MAX_KINDS:
            self._seen = {
                known: entry
                for known, entry in self._seen.items()
                if now - entry[0] < self._interval_s
            }
            if len(self._seen) >= MAX_KINDS:
                kind = None
        last, held = self._seen.get(kind, (float("-inf"), 0))
        if now - last < self._interval_s:
            self._seen[kind] = (last, held + 1)
            return None
        self._seen[kind] = (now, 0)
        return held
