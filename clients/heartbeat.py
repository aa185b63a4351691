"""When to check in again: every so often, and with back-off after failures. Pure: it does not wait.

Full jitter: each wait is a random part of a limit that doubles. Clients that lost their server
together do not return together.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_LIMIT_S = 1.0
MAX_LIMIT_S = 60.0  # a client notices within a minute that the server is back
MAX_RETRY_AFTER_S = 300.0  # a server's mistake must not silence a client for a day
MIN_WAIT_S = 0.1  # never a busy loop


class Heartbeat:
    """The waits between check-ins that are due every `every_s` seconds."""

    def __init__(self, every_s: float, rng: Callable[[], float] = random.random) -> None:
        """`rng` returns a random number from 0 up to 1."""
        self._every_s = every_s
        self._rng = rng
        self._limit_s = FIRST_LIMIT_S

    def after_success(self, took_s: float) -> float:
        """Return the seconds to wait after a check-in that took `took_s`."""
        self._limit_s = FIRST_LIMIT_S
        return max(MIN_WAIT_S, self._every_s - took_s)

    def after_failure(self, retry_after_s: float | None = None) -> float:
        """Return the seconds to wait after a failure, on top of what the server asked for."""
        jitter = self._limit_s * self._rng()
        self._limit_s = min(MAX_LIMIT_S, 2 * self._limit_s)
        asked = min(MAX_RETRY_AFTER_S, retry_after_s or 0.0)
        return max(MIN_WAIT_S, asked + jitter)
