"""Check-ins that wait for a commit: identities take turns, whatever number each has sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from tornado_status.errors import StoreError
from tornado_status.model.records import CheckIn, Event

Done = Callable[["Event | StoreError"], None]
Pending = tuple[CheckIn, Done, float]  # and when it was submitted, in monotonic seconds


class CheckInQueue:
    """Gives each identity's oldest check-in in turn. Those of one identity keep their order."""

    def __init__(self) -> None:
        self._turns: deque[Pending] = deque()  # the oldest of each identity
        self._behind: dict[str, deque[Pending] | None] = {}  # the others of these identities
        self._behind_count = 0

    def __len__(self) -> int:
        return len(self._turns) + self._behind_count

    def put(self, pending: Pending) -> None:
        email = pending[0].email
        if email not in self._behind:
            self._behind[email] = None  # as nearly always
            self._turns.append(pending)
            return
        queue = self._behind[email]
        if queue is None:
            queue = self._behind[email] = deque()
        queue.append(pending)
        self._behind_count += 1

    def take(self, count: int) -> list[Pending]:
        """Remove and return up to `count` check-ins."""
        turns, behind = self._turns, self._behind
        if not self._behind_count and len(turns) <= count:
            batch = list(turns)
            turns.clear()
            behind.clear()
            return batch
        batch = []
        while turns and len(batch) < count:
            pending = turns.popleft()
            batch.append(pending)
            email = pending[0].email
            if queue := behind[email]:
                turns.append(queue.popleft())
                self._behind_count -= 1
            else:
                del behind[email]
        return batch

    def put_back(self, batch: Sequence[Pending]) -> None:
        """Put back what was taken last, before all others of the same identities."""
        rest = self.take(len(self))
        for pending in (*batch, *rest):
            self.put(pending)
