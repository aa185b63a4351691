"""The share of each identity: its connections, and its check-ins that are not answered yet."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tornado_status.errors import Refusal

if TYPE_CHECKING:
    from tornado_status.ingress.connection import CheckInConnection

# Unanswered check-ins of one identity, whatever number of connections they came over. The next ones
# wait in the sockets. Eight identities that pipeline without end fill a batch, not the queue.
MAX_UNANSWERED = 64

TOO_MANY_CONNECTIONS = Refusal(
    429, "too-many-connections-of-identity", "More connections of this identity than allowed"
)


class Share:
    """The part of the server that one identity uses. `waiting` connections are not read further."""

    __slots__ = ("__weakref__", "connections", "unanswered", "waiting")

    def __init__(self) -> None:
        self.connections = 0
        self.unanswered = 0
        self.waiting: deque[CheckInConnection] = deque()

    def is_full(self) -> bool:
        return self.unanswered >= MAX_UNANSWERED

    def answered(self) -> None:
        """Count an answer, and go on with a connection that waits for it."""
        self.unanswered -= 1
        # One that finds no place waits again, so the loop ends.
        while self.waiting and not self.is_full():
            self.waiting.popleft().resume()


class Shares:
    """The shares of the identities that have a connection, or a cached head behind a proxy."""

    def __init__(self) -> None:
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()

    def of(self, email: str) -> Share:
        share = self._shares.get(email)
        if share is None:
            share = self._shares[email] = Share()
        return share
