"""Pure values: a peer and its check-in on the way in, events and records on the way out.

Parsed at the edge and trusted inside.
"""

from __future__ import annotations

import datetime
import enum
import functools
import ipaddress
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tornado_status.errors import Refusal
from tornado_status.model.presence import PresenceTimes


class EventKind(enum.StrEnum):
    """The kind of an entry of the log."""

    CHECK_IN = "check-in"
    NEW = "new"  # a user's first check-in
    BACK = "back"  # a user's first check-in after `offline`
    OFFLINE = "offline"  # no check-in for too long; no client caused it
    ENROLLED = "enrolled"  # by an admin; not seen yet
    REMOVED = "removed"  # by an admin, with the record
    ERASED = "erased"  # in place of any entry of a user who was erased


# The e-mail of an erased entry. No identity has it: an identity's domain has a dot in it.
ERASED_EMAIL = "erased@invalid"


@dataclass(frozen=True, slots=True)
class CheckIn:
    """One "I am here", before it is committed.

    `client_ip` is the text of an IPv4 or IPv6 address in normal form (see `normalise_ip`),
    `client_port` 1-65535. `issuer` and `serial` name the certificate, as in `Identity`.
    """

    email: str
    client_ip: str
    client_port: int
    issuer: str
    serial: str


class Event(NamedTuple):
    """One committed entry of the log. (A named tuple: one is made for each check-in.)

    `seq` is gapless over all servers on one database and rises in commit order. Times are the
    database's clock, in UTC with microseconds. A check-in was committed at `last_seen`, which never
    falls along `seq`. Any other entry was committed at `at`: it has no client's address, and no
    `last_seen` if the user never checked in.
    """

    seq: int
    event: str
    email: str
    last_seen: datetime.datetime | None
    client_ip: str | None
    client_port: int | None
    at: datetime.datetime | None = None


MAX_LINEAGE = 256  # steps of a lineage that are looked at: one for each failover or restore


@dataclass(frozen=True, slots=True)
class LogStep:
    """The beginning of a log that has the entries of `parent` up to the number `fork`.

    `at` is when it began; announcements do not say.
    """

    log_id: uuid.UUID
    parent: uuid.UUID
    fork: int
    at: datetime.datetime | None = field(default=None, compare=False)


Lineage = tuple[LogStep, ...]  # of one log: its own step first, then that of its parent, and so on


def common_head(lineage: Lineage, log_id: uuid.UUID) -> int | None:
    """Return up to which number a log with this lineage has the entries of another one.

    None if that is no ancestor of it.
    """
    forks = []
    for step in lineage:
        forks.append(step.fork)
        if step.parent == log_id:
            return min(forks)
    return None


@dataclass(frozen=True, slots=True)
class CommittedBatch:
    """The events that one commit added to the log, in order; possibly none.

    `head` is the largest number known to be committed. It may be beyond the last event, because
    other servers write to the same log. `parent` is the step from the log before, if there was one.
    """

    log_id: uuid.UUID
    head: int
    events: Sequence[Event]
    parent: LogStep | None = None


GROUP_KEY_EPOCH_S = 3600


@dataclass(frozen=True, slots=True)
class GroupKey:
    """The secret of sealed announcements in one epoch, which servers and readers share.

    `wait_s` is the time in seconds until the epoch begins, by the database's clock; negative once
    it has begun.
    """

    epoch: int
    secret: bytes
    starts_at: datetime.datetime
    wait_s: float


class Device(NamedTuple):
    """One certificate that a user checks in with, and the newest check-in with it."""

    issuer: str
    serial: str
    last_seen: datetime.datetime
    client_ip: str
    client_port: int


@dataclass(frozen=True, slots=True)
class StatusRecord:
    """The record of one user: the newest check-in, and the sequence number of the newest entry.

    `state` is that of `presence.state`. `devices` are the known ones, the newest first;
    empty in pages of users. A user who never checked in has no `last_seen` and no address.
    """

    seq: int
    email: str
    last_seen: datetime.datetime | None
    client_ip: str | None
    client_port: int | None
    state: str | None = None
    first_seen: datetime.datetime | None = None
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class EventPage:
    """A slice of the log in order, with the log id and the head."""

    log_id: uuid.UUID
    head: int
    events: list[Event]


class HistoryEntry(NamedTuple):
    """An entry of one user's history. `issuer` and `serial` name the certificate of a check-in."""

    event: Event
    issuer: str | None
    serial: str | None


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """One user's entries, the newest first. `before` continues it; None at the end."""

    entries: list[HistoryEntry]
    before: int | None


@dataclass(frozen=True, slots=True)
class HistoryEnd:
    """The last entry of a page, by its number. `before` continues the page; None at the end."""

    seq: int
    before: int | None


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Events of the log up to the number `last`, in order: all of them, or those of some users."""

    log_id: uuid.UUID
    head: int
    events: list[Event]
    last: int


@dataclass(frozen=True, slots=True)
class LogSpan:
    """The extent of the log: its id, its head, and the oldest entry that is kept.

    `oldest` is `head` + 1 if none is kept. `lineage` is at most the newest `MAX_LINEAGE` steps.
    """

    log_id: uuid.UUID
    head: int
    oldest: int
    lineage: Lineage = ()


@dataclass(frozen=True, slots=True)
class UserPage:
    """A page of records in order of their e-mail. `following` continues it; None at the end.

    `head` was read before the records: none of them is older than it says. `presence` is the
    server's in its answer, and None in a page that was read from the database.
    """

    log_id: uuid.UUID
    head: int
    users: list[StatusRecord]
    following: str | None
    presence: PresenceTimes | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """The far end of one connection.

    `check_in` is the value of each check-in on this connection. It is None if the peer may not
    check in, and then `refusal` is why.
    """

    client_ip: str
    client_port: int
    check_in: CheckIn | None
    refusal: Refusal | None


@functools.lru_cache(4096)  # for each connection, and clients come back
def normalise_ip(text: str) -> str:
    """Return an address as the database shows it: no zone, and IPv4 never as `::ffff:a.b.c.d`.

    Raises `ValueError` for what is no IP address.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def timestamp(moment: datetime.datetime) -> str:
    """Return RFC 3339 text in UTC with microseconds, as `2026-01-02T03:04:05.678901Z`."""
    return moment.astimezone(datetime.UTC).isoformat(timespec="microseconds")[:-6] + "Z"
