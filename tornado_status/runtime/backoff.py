"""Retry with exponential back-off and jitter. It computes pauses; the caller sleeps."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses between retries, in seconds: each twice the one before, up to `max_s`.

    Each pause is multiplied by a random factor of 0.5 to 1 (jitter), so that many clients do not
    return at the same moment. `rng` returns that factor's share, a float of 0 to 1.
    """

    def __init__(
        self, first_s: float, max_s: float, rng: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng
        self._pause_s = first_s

    def reset(self) -> None:
        """Start again with the first pause: an attempt succeeded."""
        self._pause_s = self._first_s

    def next_s(self) -> float:
        """Return the next pause."""
        pause_s = self._pause_s * (0.5 + self._rng() / 2)
        self._pause_s = min(self._pause_s * 2, self._max_s)
        return pause_s
