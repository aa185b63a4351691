"""Which entries of the log an alert tells, and what a short absence makes untold. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tornado_status.model.alert import Return, moment
from tornado_status.model.email_patterns import any_of
from tornado_status.model.records import Event

OFFLINE, BACK = "offline", "back"


@dataclass(frozen=True, slots=True)
class Sifted:
    """What to queue, whose returns may drop a message that waits, and how many were dropped."""

    events: list[Event]
    returns: list[Return]
    dropped: int


class AlertFilter:
    """Patterns of users (as `access.readers`), kinds of events, and the quiet time."""

    def __init__(self, users: Iterable[str], events: Sequence[str], quiet_s: float) -> None:
        self._users = any_of(users)
        self._told = frozenset(events)
        self._quiet = datetime.timedelta(seconds=quiet_s)
        # What to look for in the log: a return may make an absence untold.
        self.kinds = sorted(self._told | ({BACK} if quiet_s else set()))

    def sift(self, events: Iterable[Event]) -> Sifted:
        """Take entries in their order. An absence that ended within the quiet time is untold."""
        kept: dict[int, Event] = {}
        waiting: dict[str, Event] = {}
        known: set[str] = set()  # users of whom this slice tells: what waited before is another's
        returns: list[Return] = []
        dropped = 0
        for event in events:
            if self._users is None or self._users.fullmatch(event.email) is None:
                continue
            if event.event == BACK and self._quiet:
                absence = waiting.pop(event.email, None)
                if absence is not None and moment(absence) + self._quiet > moment(event):
                    del kept[absence.seq]
                    dropped += 1
                    continue
                if event.email not in known:
                    returns.append(Return(event.seq, event.email, moment(event)))
            if event.event == OFFLINE:
                waiting[event.email] = event
            known.add(event.email)
            if event.event in self._told:
                kept[event.seq] = event
        return Sifted(list(kept.values()), returns, dropped)
