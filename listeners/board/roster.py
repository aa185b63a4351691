"""All users, from deliveries: online, late or offline, in the order of the board. Pure.

A check-in makes a user online. Without the next one the user becomes late, then offline, by age or
by the server's event. An event of an unknown kind changes only the word that is shown.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections import Counter
from dataclasses import dataclass

from listeners.events import Delivery, Gap, Snapshot, Update
from listeners.output import CHECK_INS
from tornado_status.model.presence import State, late_after_s
from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

OFFLINE = "offline"
REMOVED = "removed"

INTERVAL_S = 60.0  # what the server's presence.interval_s is by default
MISSED = 3  # intervals without a check-in until a user counts as offline
MAX_UNVERIFIED = 20_000  # users of unverified updates, which anyone can forge: about 10 MB

# The states on the board, in the order of "sort by state". A new user is online here.
STATES = (State.ONLINE, State.LATE, State.OFFLINE)

_NUMBER = re.compile(r"\d+")


class SortOrder(enum.StrEnum):
    """The column that the rows are sorted by."""

    EMAIL = "e-mail"
    SEEN = "last seen"
    STATE = "state"
    ADDRESS = "address"


@dataclass(slots=True)
class RosterEntry:
    """The newest that is known of one user. `event` is the kind of the newest entry, or ""."""

    email: str
    last_seen: datetime.datetime
    client_ip: str | None
    client_port: int | None
    event: str = ""
    offline: bool = False  # the server says so
    verified: bool = True
    stale: bool = False  # a snapshot is under way, and has not named this user yet

    def age_s(self, now: datetime.datetime) -> float:
        """Seconds since the last check-in; never below 0, whatever the clocks say."""
        return max(0.0, (now - self.last_seen).total_seconds())


class Roster:
    """The users, kept up to date by deliveries.

    A user is late after one and a half `interval_s` without a check-in, and offline after
    `offline_after_s`. With `repairs` a snapshot follows each gap. A user who is not in it is
    removed.
    """

    def __init__(self, interval_s: float, offline_after_s: float, *, repairs: bool) -> None:
        self.repairs = repairs
        self._late_after_s = min(late_after_s(interval_s), offline_after_s)
        self._offline_after_s = offline_after_s
        self._entries: dict[str, RosterEntry] = {}
        self._replacing = False

    def __len__(self) -> int:
        return len(self._entries)

    def apply(self, delivery: Delivery) -> None:
        """Apply what the listener delivered, in its order."""
        match delivery:
            case Gap():
                if self.repairs:
                    self._replacing = True
                    for entry in self._entries.values():
                        entry.stale = True
            case Snapshot(record):
                seen = _seen(record, "", verified=True)
                if seen is None:
                    self._entries.pop(record.email, None)
                else:
                    seen.offline = record.state == OFFLINE
                    self._entries[record.email] = seen
            case Update(event, verified=verified):
                if verified and self._replacing:
                    self._replacing = False
                    self._entries = {e: p for e, p in self._entries.items() if not p.stale}
                self._update(event, verified=verified)

    def state(self, entry: RosterEntry, now: datetime.datetime) -> State:
        """Return the state of a user now."""
        age_s = entry.age_s(now)
        if entry.offline or age_s > self._offline_after_s:
            return State.OFFLINE
        return State.LATE if age_s > self._late_after_s else State.ONLINE

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
        """Return the users whose e-mail or address contains `search`, sorted; equals by e-mail."""
        search = search.strip().lower()
        found = [
            entry
            for entry in self._entries.values()
            if (search in entry.email or search in (entry.client_ip or ""))
            and (only is None or self.state(entry, now) is only)
        ]
        found.sort(key=lambda entry: entry.email)
        match order:
            case SortOrder.EMAIL:
                if descending:
                    found.reverse()
            case SortOrder.SEEN:  # the latest first
                found.sort(key=lambda entry: entry.last_seen, reverse=not descending)
            case SortOrder.STATE:  # offline first
                places = {state: place for place, state in enumerate(STATES)}
                found.sort(key=lambda p: places[self.state(p, now)], reverse=not descending)
            case SortOrder.ADDRESS:
                found.sort(key=_address, reverse=descending)
        return found

    def _update(self, event: Event | BinaryUpdate, *, verified: bool) -> None:
        known = self._entries.get(event.email)
        kind = event.event if isinstance(event, Event) else ""
        if kind == REMOVED:
            self._entries.pop(event.email, None)
        elif known is None or not kind or kind in CHECK_INS:
            room = verified or known is not None or len(self._entries) < MAX_UNVERIFIED
            entry = _seen(event, kind, verified=verified)
            if entry is None:
                return
            newer = verified or known is None or entry.last_seen >= known.last_seen
            if room and newer:
                self._entries[event.email] = entry
                entry.offline = kind == OFFLINE
        else:
            known.event = kind
            known.offline = known.offline or kind == OFFLINE


def _seen(
    seen: Event | BinaryUpdate | StatusRecord, kind: str, *, verified: bool
) -> RosterEntry | None:
    """Return an entry, or None for a user who never checked in or is erased."""
    if seen.last_seen is None:
        return None
    return RosterEntry(
        seen.email, seen.last_seen, seen.client_ip, seen.client_port, kind, verified=verified
    )


def _address(entry: RosterEntry) -> tuple[bool, list[int], str, int]:
    """Sort 10.0.0.9 before 10.0.0.10, and IPv4 before IPv6."""
    ip = entry.client_ip or ""
    numbers = [] if ":" in ip else [int(number) for number in _NUMBER.findall(ip)]
    return ":" in ip, numbers, ip, entry.client_port or 0
