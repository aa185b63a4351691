"""How often one identity may check in: token buckets. Pure: the time is passed in."""

from __future__ import annotations

import math
from collections import OrderedDict

from tornado_status.errors import TooFrequent

BURST_S = 10.0  # check-ins at once: as many as in this time, for a client that catches up
REFUSAL_DELAY_S = 1.0  # before a refusal: a client that does not wait gets one a second

MAX_REMEMBERED = 100_000  # identities; one that is forgotten starts with a full bucket


class CheckInRateLimit:
    """Allows each identity `per_second` check-ins on average, and those of `BURST_S` at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second * BURST_S)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, email: str, now: float) -> None:
        """Count one check-in at `now`, in seconds. Raises `TooFrequent` if it is too many."""
        tokens, before = self._buckets.pop(email, (self._burst, now))
        tokens = min(self._burst, tokens + (now - before) * self._per_second)
        if tokens < 1:
            self._buckets[email] = (tokens, now)
            raise TooFrequent(max(1, math.ceil((1 - tokens) / self._per_second)))
        self._buckets[email] = (tokens - 1, now)
        if len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
