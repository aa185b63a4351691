"""Deliveries to text: a block for people, a line for programs. Pure: no sockets, no files.

Everything in an update was checked when it was decoded, so nothing here needs escaping.
"""

from __future__ import annotations

import datetime
import enum
import json

from listeners.events import Delivery, Gap, Rollback, Snapshot, Source, Update
from tornado_status.model.records import Event, StatusRecord
from tornado_status.wire.datagram import BinaryUpdate

_RULE = "-" * 40
_FETCHED = "none (fetched over HTTPS)"
# The events that are a check-in themselves: the block looks the same for all three.
CHECK_INS = frozenset({"check-in", "new", "back"})

SNAPSHOT = "snapshot"  # as an event's kind


class Format(enum.StrEnum):
    """How updates are written."""

    TEXT = "text"
    JSON = "json"


def render(form: Format, delivery: Delivery, *, marks: bool = True) -> str:
    """Return one delivery as it is written, with its line ends.

    With `marks` an update that is not verified says so.
    """
    match delivery:
        case Gap():
            return _gap_block(delivery) if form is Format.TEXT else _gap_line(delivery)
        case Rollback():
            return _rollback_block(delivery) if form is Format.TEXT else _rollback_line(delivery)
        case Snapshot(record):
            event = _as_event(record)
            if form is Format.TEXT:
                return text_block(event, None, state=record.state)
            return json_line(event, state=record.state)
        case Update(event, source, verified):
            verified = verified or not marks
            if form is Format.TEXT:
                return text_block(event, source, verified=verified)
            return json_line(event, verified=verified)


def text_block(
    update: Event | BinaryUpdate,
    source: Source | None,
    *,
    verified: bool = True,
    state: str | None = None,
) -> str:
    """Return the block for people. An event that is no check-in is named on one more line."""
    lines = [_RULE, f"Source Packet: {_FETCHED if source is None else repr(source)}"]
    if isinstance(update, Event) and update.event not in CHECK_INS:
        lines.append(f"Event        : {update.event}")
    lines.append(f"User Email   : {update.email}")
    if update.last_seen is not None:
        lines.append(f"Last Seen    : {_moment(update.last_seen, ' ')}")
    if update.client_ip is not None:
        lines += [f"Client IP    : {update.client_ip}", f"Client Port  : {update.client_port}"]
    if state is not None:
        lines.append(f"State        : {state}")
    if not verified:
        lines.append("Verified     : no")
    return "\n".join([*lines, _RULE]) + "\n"


def json_line(
    update: Event | BinaryUpdate, *, verified: bool = True, state: str | None = None
) -> str:
    """Return one flat JSON object on a line of its own, without what the update lacks.

    An event that is no check-in has `at`, a snapshot has `state`.
    """
    event = update if isinstance(update, Event) else None
    at = None if event is None else event.at
    members = {
        "seq": None if event is None else event.seq,
        "event": None if event is None else event.event,
        "email": update.email,
        "last_seen": None if update.last_seen is None else _rfc_3339(update.last_seen),
        "client_ip": update.client_ip,
        "client_port": update.client_port,
        "at": None if at is None else _rfc_3339(at),
        "state": state,
        "verified": None if verified else False,
    }
    present = {name: value for name, value in members.items() if value is not None}
    return json.dumps(present, separators=(",", ":")) + "\n"


def _gap_block(gap: Gap) -> str:
    lines = [_RULE, f"Missing      : {gap.first} to {gap.last}"]
    if gap.log_id is not None:
        lines.append(f"New Log      : {gap.log_id}")
    return "\n".join([*lines, _RULE]) + "\n"


def _gap_line(gap: Gap) -> str:
    members: dict[str, object] = {"event": "gap", "from": gap.first, "to": gap.last}
    if gap.log_id is not None:
        members["log"] = str(gap.log_id)
    return json.dumps(members, separators=(",", ":")) + "\n"


def _rollback_block(lost: Rollback) -> str:
    lines = [_RULE, f"Rolled Back  : {lost.first} to {lost.last}", f"New Log      : {lost.log_id}"]
    return "\n".join([*lines, _RULE]) + "\n"


def _rollback_line(lost: Rollback) -> str:
    members = {"event": "rollback", "from": lost.first, "to": lost.last, "log": str(lost.log_id)}
    return json.dumps(members, separators=(",", ":")) + "\n"


def _as_event(record: StatusRecord) -> Event:
    return Event(
        record.seq, SNAPSHOT, record.email, record.last_seen, record.client_ip, record.client_port
    )


def _rfc_3339(moment: datetime.datetime) -> str:
    return _moment(moment, "T").replace("+00:00", "Z")


def _moment(moment: datetime.datetime, separator: str) -> str:
    # Not str(): it leaves the fraction out when it is zero.
    return moment.astimezone(datetime.UTC).isoformat(sep=separator, timespec="microseconds")
