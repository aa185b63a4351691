"""When to ask the server for the announcers. Pure: clock and random numbers are passed in."""

from __future__ import annotations

from listeners.order.retry_timer import FIRST_JITTER_S, Rng, bounded_retry_after_s
from tornado_status.runtime.backoff import Backoff

REFRESH_S = 300.0  # at most between two requests: a key that was withdrawn is refused after that
UNKNOWN_S = (1.0, 60.0)  # between requests that an unknown key or log caused, and at most


class KeyRefresh:
    """`due` is when the server is to be asked. Asks at once when it starts.

    An unknown key makes it ask soon. If the answers change nothing, as in a flood of forged
    datagrams, the pauses between such requests double.
    """

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._backoff = Backoff(*UNKNOWN_S, rng)
        self._pause_s = UNKNOWN_S[0]
        self._not_before = float("-inf")
        self.wanted = False  # a datagram has a key or log that is still unknown
        self.due = float("-inf")

    def want(self, now: float) -> None:
        """Ask soon: a datagram has an unknown key or log."""
        if not self.wanted:
            self.wanted = True
            self.due = min(self.due, max(self._not_before, now) + FIRST_JITTER_S * self._rng())

    def answered(self, now: float, *, changed: bool) -> None:
        """Plan the next request. `changed`: the answer brought something new."""
        if changed:
            self._backoff.reset()
        self._plan(now, 0.0, next_pause=self.wanted or changed)
        self.due = now + REFRESH_S * (0.5 + 0.5 * self._rng())

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """Plan the next request after one that got no answer."""
        self._plan(now, bounded_retry_after_s(retry_after_s), next_pause=True)
        self.due = self._not_before

    def _plan(self, now: float, wait_s: float, *, next_pause: bool) -> None:
        if next_pause:
            self._pause_s = self._backoff.next_s()
        self._not_before = now + wait_s + self._pause_s
        self.wanted = False
