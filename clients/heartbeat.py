"""When to check in again: a rhythm, and how it yields to failures. Pure: it neither waits nor asks.

The jitter is "full": each wait is drawn between nothing and a limit that doubles, so that a fleet
that lost its server together does not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_LIMIT_S = 1.0
MAX_LIMIT_S = 60.0  # a server that is back is noticed within a minute
MAX_RETRY_AFTER_S = 300.0  # a server's slip must not silence a client for a day
MIN_WAIT_S = 0.1  # whatever is drawn or asked for: never a busy loop


class Heartbeat:
    """The waits between check-ins that are to happen every `every_s` seconds."""

    def __init__(self, every_s: float, draw: Callable[[], float] = random.random) -> None:
        """`draw` returns a number from 0 up to 1, each time another."""
        self._every_s = every_s
        self._draw = draw
        self._limit_s = FIRST_LIMIT_S

    def after_success(self, took_s: float) -> float:
        """Return the seconds to wait after a check-in that took `took_s`."""
        self._limit_s = FIRST_LIMIT_S
        return max(MIN_WAIT_S, self._every_s - took_s)

    def after_failure(self, retry_after_s: float | None = None) -> float:
        """Return the seconds to wait after a failure, on top of what the server asked for."""
        jitter = self._limit_s * self._draw()
        self._limit_s = min(MAX_LIMIT_S, 2 * self._limit_s)
        asked = min(MAX_RETRY_AFTER_S, retry_after_s or 0.0)
        return max(MIN_WAIT_S, asked + jitter)
