"""Admission to the live stream: how many subscriptions may be open, in all and for each user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tornado_status.api.problem import Problem

MAX_PER_USER = 20  # unless a reader: enough for tabs and devices; one user must not take all slots
MAX_PER_READER = 100  # also for a program that shows events to others


class Slots:
    """The slots for subscriptions. `on_empty` runs whenever the last one is released."""

    def __init__(self, limit: int, on_empty: Callable[[], None]) -> None:
        self.is_closed = False  # the server is stopping
        self._limit = limit
        self._on_empty = on_empty
        self._taken: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Subscriptions that are open or being opened."""
        return self._taken.total()

    def take(self, email: str, *, is_reader: bool) -> Slot:
        """Return a slot. Raises `Problem` if there is none for this user."""
        if self.is_closed:
            raise Problem(503, "The server is stopping", {"Retry-After": "1"})
        if self.count >= self._limit:
            raise Problem(503, "As many streams as allowed are open", {"Retry-After": "10"})
        if self._taken[email] >= (MAX_PER_READER if is_reader else MAX_PER_USER):
            raise Problem(503, "You have as many streams as allowed", {"Retry-After": "10"})
        self._taken[email] += 1
        return Slot(email, lambda: self._release(email))

    def _release(self, email: str) -> None:
        self._taken[email] -= 1
        if not self._taken[email]:
            del self._taken[email]
        if not self._taken:
            self._on_empty()  # also if no subscription came of it


class Slot:
    """One slot, for one subscription of the identity `email`."""

    def __init__(self, email: str, on_release: Callable[[], None]) -> None:
        self.email = email
        self._on_release: Callable[[], None] | None = on_release

    def release(self) -> None:
        """Give the slot back. Idempotent."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()
