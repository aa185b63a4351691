"""How often a stranger can make the listener write a warning. Pure: the clock is handed in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

INTERVAL_S = 60.0
# Source addresses are forged at no cost: this many lines a minute at most, and this much memory.
MAX_SUBJECTS = 1024


class Complaints:
    """Lets one complaint through for each subject and interval, and counts the others."""

    def __init__(self, interval_s: float = INTERVAL_S, max_subjects: int = MAX_SUBJECTS) -> None:
        self._interval_s = interval_s
        self._max_subjects = max_subjects
        # Subject -> when it may be complained of again, and how many complaints were withheld.
        # The oldest is first: the interval is the same for all.
        self._subjects: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._subjects)

    def allow(self, subject: Hashable, now: float) -> int | None:
        """Return how many complaints of `subject` were withheld before this one.

        None: this one is withheld too. `now` is in seconds and never falls.
        """
        known = self._subjects.get(subject)
        if known is not None:
            until, withheld = known
            if now < until:
                self._subjects[subject] = (until, withheld + 1)
                return None
            del self._subjects[subject]
        else:
            withheld = 0
            if len(self._subjects) >= self._max_subjects:
                self._forget(now)
            if len(self._subjects) >= self._max_subjects:
                return None
        self._subjects[subject] = (now + self._interval_s, 0)
        return withheld

    def _forget(self, now: float) -> None:
        while self._subjects:
            until, _ = next(iter(self._subjects.values()))
            if now < until:
                return
            self._subjects.popitem(last=False)
