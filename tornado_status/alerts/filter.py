"""The events of the log that an alert sends, less those of short absences. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tornado_status.model.alert import UserReturn, committed_at
from tornado_status.model.email_patterns import any_of
from tornado_status.model.records import Event

OFFLINE, BACK = "offline", "back"


@dataclass(frozen=True, slots=True)
class Filtered:
    """The events to queue, the returns that may suppress a queued message, and how many events
    were suppressed here.
    """

    events: list[Event]
    returns: list[UserReturn]
    suppressed: int


class AlertFilter:
    """Patterns of users (as in `access.readers`), kinds of events, and the quiet time."""

    def __init__(self, users: Iterable[str], events: Sequence[str], quiet_s: float) -> None:
        self._users = any_of(users)
        self._events = frozenset(events)
        self._quiet = datetime.timedelta(seconds=quiet_s)
        # The kinds to read from the log: a return may suppress an absence.
        self.kinds = sorted(self._events | ({BACK} if quiet_s else set()))

    def apply(self, events: Iterable[Event]) -> Filtered:
        """Filter events, in order. Suppress an absence that ended within the quiet time."""
        kept: dict[int, Event] = {}
        absences: dict[str, Event] = {}
        known: set[str] = set()  # users with an event in this slice: it decides on a queued message
        returns: list[UserReturn] = []
        suppressed = 0
        for event in events:
            if self._users is None or self._users.fullmatch(event.email) is None:
                continue
            if event.event == BACK and self._quiet:
                absence = absences.pop(event.email, None)
                if absence is not None and committed_at(absence) + self._quiet > committed_at(
                    event
                ):
                    del kept[absence.seq]
                    suppressed += 1
                    continue
                if event.email not in known:
                    returns.append(UserReturn(event.seq, event.email, committed_at(event)))
            if event.event == OFFLINE:
                absences[event.email] = event
            known.add(event.email)
            if event.event in self._events:
                kept[event.seq] = event
        return Filtered(list(kept.values()), returns, suppressed)
