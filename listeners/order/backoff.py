"""When to ask the server again: jitter, back-off and its own wish. Pure: clock and chance come in.

A thousand listeners miss the same datagram: each waits for a random moment before it asks.
"""

from __future__ import annotations

from collections.abc import Callable

Chance = Callable[[], float]  # 0 to 1, as random.random

FIRST_JITTER_S = 0.25  # before the first request: spreads a thousand listeners to 4 a millisecond
BACK_OFF_S = (0.5, 30.0)  # after the first failure, and at most
MAX_RETRY_AFTER_S = 300.0  # a server that asks for more is asked again all the same


class Pace:
    """The moment before which a request may not be sent again. Seconds of one rising clock."""

    def __init__(self, chance: Chance, back_off_s: tuple[float, float] = BACK_OFF_S) -> None:
        self._chance = chance
        self._first_s, self._most_s = back_off_s
        self._failures = 0
        self.not_before = float("-inf")

    def begin(self, now: float) -> None:
        """A need has come up: wait for a random moment."""
        self.not_before = max(self.not_before, now + FIRST_JITTER_S * self._chance())

    def succeeded(self) -> None:
        """The last request was answered: the next may follow at once."""
        self._failures = 0
        self.not_before = float("-inf")

    def failed(self, now: float, retry_after_s: float | None = None) -> float:
        """The last request failed. Returns how long to wait."""
        most = min(self._most_s, self._first_s * (1 << min(self._failures, 16)))
        self._failures += 1
        wait = most * (0.5 + 0.5 * self._chance())
        if retry_after_s is not None:
            # Not sooner than it says, and not all at the same moment.
            wait += min(max(retry_after_s, 0.0), MAX_RETRY_AFTER_S)
        self.not_before = now + wait
        return wait


REFRESH_S = (
    300.0  # at most between two looks at who announces: a key that was taken back is refused
)
UNKNOWN_S = (1.0, 60.0)  # between two because of something unknown: at first, and in a flood of it


class Refresh:
    """When to ask the server who announces: now and then, and when something unknown is heard.

    What is unknown costs the sender nothing, so each look that finds nothing new makes the next one
    wait twice as long.
    """

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._interval_s = UNKNOWN_S[0]
        self._not_before = float("-inf")
        self._wanted = False
        self.due = float("-inf")

    def want(self, now: float) -> None:
        """Something unknown was heard."""
        if not self._wanted:
            self._wanted = True
            self.due = min(self.due, max(self._not_before, now) + FIRST_JITTER_S * self._chance())

    def answered(self, now: float, *, changed: bool) -> None:
        """The server was asked; `changed` where that brought something new."""
        if changed:
            self._interval_s = UNKNOWN_S[0]
        self._plan(now, 0.0, doubled=self._wanted and not changed)
        self.due = now + REFRESH_S * (0.5 + 0.5 * self._chance())

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """The server gave no answer."""
        self._plan(now, min(retry_after_s or 0.0, MAX_RETRY_AFTER_S), doubled=True)
        self.due = self._not_before

    def _plan(self, now: float, wait_s: float, *, doubled: bool) -> None:
        self._not_before = now + wait_s + self._interval_s * (0.5 + 0.5 * self._chance())
        if doubled:
            self._interval_s = min(2 * self._interval_s, UNKNOWN_S[1])
        self._wanted = False
