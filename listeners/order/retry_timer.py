"""Pauses before a failed request is sent again. Pure: clock and random numbers are passed in."""

from __future__ import annotations

import random
from collections.abc import Callable

from tornado_status.runtime.backoff import Backoff

Rng = Callable[[], float]  # 0 to 1, as random.random

# A thousand listeners miss the same datagram. Each waits up to this long before its first request,
# which spreads them to 4 a millisecond.
FIRST_JITTER_S = 0.25
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
MAX_RETRY_AFTER_S = 300.0  # a server that asks for a longer pause is asked again all the same


class RetryTimer:
    """The time before which a request may not be sent again. Seconds of one rising clock.

    Exponential back-off with jitter, on top of what the server's Retry-After asks for.
    """

    def __init__(self, rng: Rng = random.random) -> None:
        self._rng = rng
        self._backoff = Backoff(FIRST_PAUSE_S, MAX_PAUSE_S, rng)
        self.not_before = float("-inf")

    def begin(self, now: float) -> None:
        """Wait for a random moment: a request has become necessary."""
        self.not_before = max(self.not_before, now + FIRST_JITTER_S * self._rng())

    def succeeded(self) -> None:
        """Allow the next request at once: the last one was answered."""
        self._backoff.reset()
        self.not_before = float("-inf")

    def failed(self, now: float, retry_after_s: float | None = None) -> float:
        """Return how many seconds to wait after a request that failed."""
        pause_s = self._backoff.next_s() + bounded_retry_after_s(retry_after_s)
        self.not_before = now + pause_s
        return pause_s


def bounded_retry_after_s(retry_after_s: float | None) -> float:
    """Return the pause that the server asked for: 0 if none, at most `MAX_RETRY_AFTER_S`."""
    return min(max(retry_after_s or 0.0, 0.0), MAX_RETRY_AFTER_S)
