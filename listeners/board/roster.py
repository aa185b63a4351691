"""All users and their states, from deliveries, in the order of the board. Pure.

A check-in makes a user online. Without another one the user becomes late, then offline, by age or
by the server's event. An event of an unknown kind changes only the word that is shown.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections import Counter
from dataclasses import dataclass

from listeners.events import Delivery, Gap, Rollback, Snapshot, Update
from listeners.output import CHECK_INS
from tornado_status.model.presence import PresenceTimes, State
from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

ENROLLED = "enrolled"
OFFLINE = "offline"
REMOVED = "removed"

MAX_UNVERIFIED = 20_000  # users of unverified updates, which may be forged: about 10 MB

# In the order of the counts, and of "sort by state".
STATES = (State.ONLINE, State.LATE, State.OFFLINE, State.NEVER)
_BY_URGENCY = (State.OFFLINE, State.LATE, State.ONLINE, State.NEVER)

_EPOCH = datetime.datetime.min.replace(tzinfo=datetime.UTC)

_NUMBER = re.compile(r"\d+")


class SortOrder(enum.StrEnum):
    """The column that the rows are sorted by."""

    EMAIL = "e-mail"
    SEEN = "last seen"
    STATE = "state"
    ADDRESS = "address"


@dataclass(slots=True)
class RosterEntry:
    """The newest that is known of one user. `event` is the kind of the newest entry, or "".

    `last_seen` is None if the user never checked in.
    """

    email: str
    last_seen: datetime.datetime | None
    client_ip: str | None
    client_port: int | None
    event: str = ""
    offline: bool = False  # the server says so
    verified: bool = True
    stale: bool = False  # a snapshot is under way, and has not named this user yet

    def age_s(self, now: datetime.datetime) -> float | None:
        """Return the seconds since the last check-in, at least 0, or None before the first."""
        return None if self.last_seen is None else max(0.0, (now - self.last_seen).total_seconds())


class Roster:
    """The users, kept up to date by deliveries.

    `times` says when a user is late and offline: the caller puts in the server's. With `repairs` a
    snapshot follows each gap and rollback. A user who is not in it is removed.
    """

    def __init__(self, *, repairs: bool) -> None:
        self.repairs = repairs
        self.times = PresenceTimes()
        self._entries: dict[str, RosterEntry] = {}
        self._replacing = False

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, delivery: Delivery) -> None:
        """Apply what the listener delivered, in its order."""
        match delivery:
            case Gap() | Rollback():
                if self.repairs:
                    self._replacing = True
                    for entry in self._entries.values():
                        entry.stale = True
            case Snapshot(record):
                entry = _entry(record, "", verified=True)
                entry.offline = record.state == OFFLINE
                self._entries[record.email] = entry
            case Update(event, verified=verified):
                if verified and self._replacing:
                    self._replacing = False
                    self._entries = {e: p for e, p in self._entries.items() if not p.stale}
                self._update(event, verified=verified)

    def state(self, entry: RosterEntry, now: datetime.datetime) -> State:
        """Return the state of a user now."""
        age_s = entry.age_s(now)
        if age_s is None:
            return State.NEVER
        if entry.offline or age_s > self.times.offline_after_s:
            return State.OFFLINE
        return State.LATE if age_s > self.times.late_after_s else State.ONLINE

    def count(self, now: datetime.datetime) -> Counter[State]:
        """Count all users by state."""
        return Counter(self.state(entry, now) for entry in self._entries.values())

    def rows(
        self,
        now: datetime.datetime,
        *,
        order: SortOrder = SortOrder.EMAIL,
        descending: bool = False,
        search: str = "",
        only: State | None = None,
    ) -> list[RosterEntry]:
        """Return the users whose e-mail or address contains each word of `search`, sorted.

        Users who are equal in `order` are sorted by e-mail.
        """
        words = search.lower().split()
        found = [
            entry
            for entry in self._entries.values()
            if all(word in entry.email or word in (entry.client_ip or "") for word in words)
            and (only is None or self.state(entry, now) is only)
        ]
        found.sort(key=lambda entry: entry.email)
        match order:
            case SortOrder.EMAIL:
                if descending:
                    found.reverse()
            case SortOrder.SEEN:  # the latest first
                found.sort(key=_seen_at, reverse=not descending)
            case SortOrder.STATE:  # offline first
                found.sort(
                    key=lambda entry: _BY_URGENCY.index(self.state(entry, now)), reverse=descending
                )
            case SortOrder.ADDRESS:
                found.sort(key=_address, reverse=descending)
        return found

    def _update(self, event: Event | BinaryUpdate, *, verified: bool) -> None:
        known = self._entries.get(event.email)
        kind = event.event if isinstance(event, Event) else ""
        if kind == REMOVED:
            self._entries.pop(event.email, None)
        elif known is None or not kind or kind in CHECK_INS:
            if event.last_seen is None and kind != ENROLLED:
                return  # an erased entry, or one of an unknown kind
            entry = _entry(event, kind, verified=verified)
            room = verified or known is not None or len(self._entries) < MAX_UNVERIFIED
            newer = verified or known is None or _seen_at(entry) >= _seen_at(known)
            if room and newer:
                self._entries[event.email] = entry
                entry.offline = kind == OFFLINE
        else:
            known.event = kind
            known.offline = known.offline or kind == OFFLINE


def _entry(seen: Event | BinaryUpdate | StatusRecord, kind: str, *, verified: bool) -> RosterEntry:
    return RosterEntry(
        seen.email, seen.last_seen, seen.client_ip, seen.client_port, kind, verified=verified
    )


def _seen_at(entry: RosterEntry) -> datetime.datetime:
    return entry.last_seen or _EPOCH


def _address(entry: RosterEntry) -> tuple[bool, list[int], str, int]:
    """Sort 10.0.0.9 before 10.0.0.10, and IPv4 before IPv6."""
    ip = entry.client_ip or ""
    numbers = [] if ":" in ip else [int(number) for number in _NUMBER.findall(ip)]
    return ":" in ip, numbers, ip, entry.client_port or 0
