"""The rate limit for log lines that a peer can cause. The clock is passed in."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_KINDS = 256  # remembered by one RateLimit; a peer may invent more


class RateLimit:
    """Allows one of each kind per interval, and counts those that it suppresses.

    Bounded: beyond `MAX_KINDS` kinds all others count as one.
    """

    def __init__(self, interval_s: float = 60.0, clock: Callable[[], float] = time.monotonic):
        self._interval_s = interval_s
        self._clock = clock
        # Kind -> when it was last let through, and how many were suppressed since. The oldest is
        # first, so that a flood of new kinds does not search the whole.
        self._seen: OrderedDict[object, tuple[float, int]] = OrderedDict()

    def allow(self, kind: object) -> int | None:
        """Return None to suppress this one, else how many of its kind were suppressed before."""
        now = self._clock()
        if kind not in self._seen and len(self._seen) >= MAX_KINDS:
            self._forget_expired(now)
            if len(self._seen) >= MAX_KINDS:
                kind = None
        last, suppressed = self._seen.get(kind, (float("-inf"), 0))
        if now - last < self._interval_s:
            self._seen[kind] = (last, suppressed + 1)
            return None
        self._seen[kind] = (now, 0)
        self._seen.move_to_end(kind)
        return suppressed

    def _forget_expired(self, now: float) -> None:
        while self._seen:
            last, _ = next(iter(self._seen.values()))
            if now - last < self._interval_s:
                return
            self._seen.popitem(last=False)
