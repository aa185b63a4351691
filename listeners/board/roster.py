"""Everybody, from deliveries: who is online, late or offline, in which order. Pure.

A check-in makes a person online. Without the next one they become late, then offline, by age; where
the server says so itself, by its event. Kinds of events that are not known here change nothing but
the word that is shown.
"""

from __future__ import annotations

import datetime
import enum
import re
from collections import Counter
from dataclasses import dataclass

from listeners.events import Delivery, Gap, Snapshot, Update
from listeners.output import CHECK_INS
from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

OFFLINE = "offline"
REMOVED = "removed"

INTERVAL_S = 60.0  # what the server's presence.interval_s is by default
MISSED = 3  # intervals without a check-in until somebody counts as offline
LATE = 1.5  # intervals: a check-in that is on its way makes nobody late
MAX_UNVERIFIED = 20_000  # people, once somebody asked for what anybody can forge: about 10 MB

_NUMBER = re.compile(r"\d+")


class State(enum.StrEnum):
    """What a person is now. In order of what there is to see to."""

    ONLINE = "online"
    LATE = "late"
    OFFLINE = "offline"


class Order(enum.StrEnum):
    """What the rows are ordered by."""

    EMAIL = "e-mail"
    SEEN = "last seen"
    STATE = "state"
    ADDRESS = "address"


@dataclass(slots=True)
class Person:
    """The newest that is known of one e-mail. `event` is the kind of the newest entry, or ""."""

    email: str
    last_seen: datetime.datetime
    client_ip: str | None
    client_port: int | None
    event: str = ""
    offline: bool = False  # by the server's word
    verified: bool = True
    stale: bool = False  # a snapshot is under way, and has not named them yet

    def age_s(self, now: datetime.datetime) -> float:
        """Seconds since the last check-in; never below 0, whatever the clocks say."""
        return max(0.0, (now - self.last_seen).total_seconds())


class People:
    """Takes deliveries in, and answers who is here.

    Late is who was not seen for one and a half `interval_s`, offline who was not for
    `offline_after_s`. With `repairs` a snapshot follows each gap: who is not in it is forgotten.
    """

    def __init__(self, interval_s: float, offline_after_s: float, *, repairs: bool) -> None:
        self.repairs = repairs
        self._late_after_s = min(interval_s * LATE, offline_after_s)
        self._offline_after_s = offline_after_s
        self._people: dict[str, Person] = {}
        self._replacing = False

    def __len__(self) -> int:
        return len(self._people)

    def take(self, delivery: Delivery) -> None:
        """Take in what the listener delivered, in its order."""
        match delivery:
            case Gap():
                if self.repairs:
                    self._replacing = True
                    for person in self._people.values():
                        person.stale = True
            case Snapshot(record):
                seen = _seen(record, "", verified=True)
                if seen is None:
                    self._people.pop(record.email, None)
                else:
                    seen.offline = record.state == OFFLINE
                    self._people[record.email] = seen
            case Update(event, verified=verified):
                if verified and self._replacing:
                    self._replacing = False
                    self._people = {e: p for e, p in self._people.items() if not p.stale}
                self._update(event, verified=verified)

    def state(self, person: Person, now: datetime.datetime) -> State:
        """Say what a person is now."""
        age_s = person.age_s(now)
        if person.offline or age_s > self._offline_after_s:
            return State.OFFLINE
        return State.LATE if age_s > self._late_after_s else State.ONLINE

    def count(self, now: datetime.datetime) -> Counter[State]:
        """Count everybody by state."""
        return Counter(self.state(person, now) for person in self._people.values())

    def rows(
        self,
        now: datetime.datetime,
        *,
        order: Order = Order.EMAIL,
        descending: bool = False,
        search: str = "",
        only: State | None = None,
    ) -> list[Person]:
        """Return those whose e-mail or address contains `search`, in order; equals by e-mail."""
        search = search.strip().lower()
        found = [
            person
            for person in self._people.values()
            if (search in person.email or search in (person.client_ip or ""))
            and (only is None or self.state(person, now) is only)
        ]
        found.sort(key=lambda person: person.email)
        match order:
            case Order.EMAIL:
                if descending:
                    found.reverse()
            case Order.SEEN:  # the latest first
                found.sort(key=lambda person: person.last_seen, reverse=not descending)
            case Order.STATE:  # what there is to see to first
                places = {state: place for place, state in enumerate(State)}
                found.sort(key=lambda p: places[self.state(p, now)], reverse=not descending)
            case Order.ADDRESS:
                found.sort(key=_address, reverse=descending)
        return found

    def _update(self, event: Event | BinaryUpdate, *, verified: bool) -> None:
        known = self._people.get(event.email)
        kind = event.event if isinstance(event, Event) else ""
        if kind == REMOVED:
            self._people.pop(event.email, None)
        elif known is None or not kind or kind in CHECK_INS:
            room = verified or known is not None or len(self._people) < MAX_UNVERIFIED
            person = _seen(event, kind, verified=verified)
            if person is None:
                return
            newer = verified or known is None or person.last_seen >= known.last_seen
            if room and newer:
                self._people[event.email] = person
                person.offline = kind == OFFLINE
        else:
            known.event = kind
            known.offline = known.offline or kind == OFFLINE


def _seen(seen: Event | BinaryUpdate | StatusRecord, kind: str, *, verified: bool) -> Person | None:
    """Return a person, or None for who is enrolled and never checked in, or is erased."""
    if seen.last_seen is None:
        return None
    return Person(
        seen.email, seen.last_seen, seen.client_ip, seen.client_port, kind, verified=verified
    )


def _address(person: Person) -> tuple[bool, list[int], str, int]:
    """Order 10.0.0.9 before 10.0.0.10, and IPv4 before IPv6."""
    ip = person.client_ip or ""
    numbers = [] if ":" in ip else [int(number) for number in _NUMBER.findall(ip)]
    return ":" in ip, numbers, ip, person.client_port or 0
