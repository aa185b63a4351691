"""The server's answers: JSON to checked values. Pure.

An answer over TLS comes from the server, but may still be wrong. An answer that contradicts itself,
such as a page of events with a hole, is an error like any other.
"""

from __future__ import annotations

import base64
import json
import math
import re
import uuid

from tornado_status.errors import DatagramError
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import (
    MAX_LINEAGE,
    EventPage,
    LogSpan,
    LogStep,
    StatusRecord,
    UserPage,
)
from tornado_status.wire.event_object import decode_update
from tornado_status.wire.json_members import MAX_SEQ
from tornado_status.wire.sealed_datagram import MAX_EPOCH, EpochSecret

MAX_PATH = 2048  # characters of `next`: an e-mail with every character escaped, and to spare

MAX_GROUP_KEYS = 8  # a server has two

_GROUP_KEY = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # 256 bits: the last has 4
_ANY_MOMENT = "1970-01-01T00:00:00.000000Z"
_STATE = re.compile(r"[a-z][a-z-]{0,31}")


class AnswerError(Exception):
    """An answer that is not what docs/protocol.md says. The message is a sentence's end."""


def announcers(body: bytes) -> tuple[uuid.UUID, list[str]]:
    """Return the log id and the certificates (PEM) of `GET /api/announcers`."""
    members = _object(body)
    found = members.get("announcers")
    if not isinstance(found, list) or not all(isinstance(pem, str) for pem in found):
        raise AnswerError("`announcers` is no list of certificates")
    return _log_id(members), found


def log(body: bytes) -> LogSpan:
    """Return the log of `GET /api/log`. It does not say what the oldest entry is."""
    members = _object(body)
    entries = members.get("lineage")
    if not isinstance(entries, list):
        raise AnswerError("`lineage` is no list")
    log_id, head = _log_id(members), _number(members, "head")
    steps: list[LogStep] = []
    for entry in entries[:MAX_LINEAGE]:
        if not isinstance(entry, dict):
            raise AnswerError("a step of `lineage` is no object")
        step = LogStep(_log_id(entry), _log_id(entry, "parent"), _number(entry, "fork"))
        if step.log_id != (steps[-1].parent if steps else log_id):
            raise AnswerError(f"`lineage` has {step.log_id} out of order")
        steps.append(step)
    return LogSpan(log_id, head, 0, tuple(steps))


def group_keys(body: bytes) -> list[EpochSecret]:
    """Return the keys of `GET /api/group-keys`."""
    found = _object(body).get("keys")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise AnswerError("`keys` is no list of keys")
    return [_group_key(entry) for entry in found[:MAX_GROUP_KEYS]]


def _group_key(members: dict[str, object]) -> EpochSecret:
    epoch, key = members.get("epoch"), members.get("key")
    if type(epoch) is not int or not 0 <= epoch <= MAX_EPOCH:
        raise AnswerError("`epoch` is no number of an epoch")
    if not isinstance(key, str) or not _GROUP_KEY.fullmatch(key):
        raise AnswerError(f"the key of epoch {epoch} is none")
    return EpochSecret(epoch, base64.urlsafe_b64decode(key + "="))


def events(body: bytes, after: int) -> EventPage:
    """Return a page of `GET /api/events?after=…`, without a hole between `after` and its end."""
    members = _object(body)
    entries = members.get("events")
    if not isinstance(entries, list):
        raise AnswerError("`events` is no list")
    try:
        found = [decode_update(entry) for entry in entries]
    except DatagramError as error:
        raise AnswerError(str(error)) from error
    for expected, event in enumerate(found, start=after + 1):
        if event.seq != expected:
            raise AnswerError(f"event {event.seq} instead of {expected}")
    head = _number(members, "head")
    if head < after + len(found):
        raise AnswerError(f"its head is {head}, below its events")
    return EventPage(_log_id(members), head, found)


def users(body: bytes) -> UserPage:
    """Return a page of `GET /api/users`; its `following` is the next page's path."""
    members = _object(body)
    entries = members.get("users")
    if not isinstance(entries, list):
        raise AnswerError("`users` is no list")
    following = members.get("next")
    if following is not None and not (
        isinstance(following, str)
        and following.startswith("/api/users?")
        and following.isascii()
        and following.isprintable()
        and " " not in following
        and len(following) <= MAX_PATH
    ):
        raise AnswerError("`next` is no path of a page of users")
    return UserPage(
        _log_id(members),
        _number(members, "head"),
        [_record(entry) for entry in entries],
        following,
        _presence(members.get("presence")),
    )


def _presence(entry: object) -> PresenceTimes:
    if not isinstance(entry, dict):
        raise AnswerError("`presence` is no object")
    return PresenceTimes(
        *(_seconds(entry, name) for name in ("interval_s", "late_after_s", "offline_after_s"))
    )


def _seconds(members: dict[str, object], name: str) -> float:
    value = members.get(name)
    if type(value) in (int, float) and 0 < value < math.inf:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type] # checked by its type
    raise AnswerError(f"`{name}` is no number of seconds")


def _record(entry: object) -> StatusRecord:
    if not isinstance(entry, dict):
        raise AnswerError("a record is no object")
    members = {name: value for name, value in entry.items() if value is not None}
    seen = "last_seen" in members
    if not seen:  # enrolled, and never checked in: as an event it would need another moment
        members["at"] = _ANY_MOMENT
    try:
        event = decode_update({**members, "event": "snapshot"})
    except DatagramError as error:
        raise AnswerError(str(error)) from error
    if seen and (event.client_ip is None or event.client_port is None):
        raise AnswerError("a record has no address")
    state = entry.get("state")
    if not (state is None or (isinstance(state, str) and _STATE.fullmatch(state))):
        raise AnswerError("`state` is no word")
    return StatusRecord(
        event.seq, event.email, event.last_seen, event.client_ip, event.client_port, state
    )


def _object(body: bytes) -> dict[str, object]:
    try:
        members: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AnswerError("it is not JSON") from error
    if not isinstance(members, dict):
        raise AnswerError("it is no JSON object")
    return members


def _log_id(members: dict[str, object], name: str = "log") -> uuid.UUID:
    value = members.get(name)
    try:
        return uuid.UUID(value if isinstance(value, str) else "")
    except ValueError as error:
        raise AnswerError(f"`{name}` is no UUID") from error


def _number(members: dict[str, object], name: str) -> int:
    value = members.get(name)
    if type(value) is int and 0 <= value <= MAX_SEQ:
        return value
    raise AnswerError(f"`{name}` is no number of the log")
