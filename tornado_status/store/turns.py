"""Which of the check-ins that wait are committed next: identities take turns. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tornado_status.errors import StoreError
from tornado_status.model.records import CheckIn, Event

Done = Callable[["Event | StoreError"], None]
Pending = tuple[CheckIn, Done, float]  # and when it was submitted, in monotonic seconds


def take(queue: deque[Pending], count: int) -> list[Pending]:
    """Remove and return up to `count` check-ins: the first of each identity, then the second ones.

    All of them in their order, if there are no more. Those of one identity always keep their order.
    """
    if len(queue) <= count:
        batch = list(queue)
        queue.clear()
        return batch
    rounds: list[list[Pending]] = [[]]
    seen: dict[str, int] = {}
    while queue and len(rounds[0]) < count:
        pending = queue.popleft()
        email = pending[0].email
        number = seen.get(email, 0)
        seen[email] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(pending)
    in_turns = [pending for each in rounds for pending in each]
    queue.extendleft(reversed(in_turns[count:]))
    return in_turns[:count]
