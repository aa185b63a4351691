"""/api/users: all users, one user with enrolment and removal, and one user's history."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from urllib.parse import quote, urlencode

from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import DEFAULT_LIMIT, ReadHandler
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import HistoryEntry, StatusRecord, timestamp
from tornado_status.wire import datagram

MAX_USERS = 10_000  # a page of about 1.5 MB
MAX_HISTORY = 10_000  # a page of about 3 MB
SNAPSHOT_GOOD_S = 15  # how long a client may keep a page, whose states change without an event


class UserHandler(ReadHandler):
    """One user's record: for readers, and for the user. Admins enrol and remove users."""

    async def get(self, text: str) -> None:
        record = await self.store.user(self.readable_email(text))
        if record is None:
            raise Problem(404, "No check-in is recorded for this e-mail")
        self.write_json(record_json(record))

    async def put(self, text: str) -> None:
        enrolled = await self.store.enrol(self._administered_email(text))
        self.set_status(201 if enrolled else 204)

    async def delete(self, text: str) -> None:
        if not await self.store.remove(self._administered_email(text)):
            raise Problem(404, "This e-mail is not enrolled")
        self.set_status(204)

    def _administered_email(self, text: str) -> str:
        if not self.access.may_administer(self.check_in.email):
            self.forbid("Only admins may enrol and remove users")
        return self.canonical_email(text)


class UsersHandler(ReadHandler):
    """A page of all users' records, in order of their e-mail addresses."""

    presence: PresenceTimes

    _etag: str | None = None

    async def get(self) -> None:
        self.require_reader()
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_USERS)
        after = self.get_query_argument("after", "")
        if "If-None-Match" in self.request.headers:
            span = await self.store.log_span()
            self._etag = _etag(span.log_id, span.head)
            self.set_etag_header()
            if self.check_etag_header():
                self.set_status(304)
                return
        page = await self.store.users(after, limit)
        self._etag = _etag(page.log_id, page.head)
        next_path = "null"
        if page.following is not None:
            query = urlencode({"after": page.following, "limit": limit})
            next_path = json.dumps(f"/api/users?{query}")
            self.set_next(f"/api/users?{query}")
        records = b",".join(record_json(record) for record in page.users)
        presence = json.dumps(dataclasses.asdict(self.presence), separators=(",", ":"))
        opening = f'{{"log":"{page.log_id}","head":{page.head},"presence":{presence},"users":['
        self.write_json(opening.encode() + records + f'],"next":{next_path}}}'.encode())

    def compute_etag(self) -> str | None:
        """See `RequestHandler.compute_etag`: by the head and a rough time."""
        return self._etag


def _etag(log_id: uuid.UUID, head: int) -> str:
    # Weak, because the records were read after the head and may be newer. The time is in it because
    # a user becomes late without an event.
    return f'W/"{log_id}-{head}-{int(time.time() / SNAPSHOT_GOOD_S)}"'


class HistoryHandler(ReadHandler):
    """A page of one user's events, newest first: for readers, and for the user."""

    async def get(self, text: str) -> None:
        email = self.readable_email(text)
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_HISTORY)
        before = self.integer("before", 0, 1, datagram.MAX_SEQ) if self.has("before") else None
        page = await self.store.history(email, before, limit)
        next_path = "null"
        if page.before is not None:
            query = urlencode({"before": page.before, "limit": limit})
            path = f"/api/users/{quote(email, safe='@')}/history?{query}"
            next_path = json.dumps(path)
            self.set_next(path)
        entries = b",".join(history_json(entry) for entry in page.entries)
        opening = f'{{"email":{json.dumps(email)},"events":['.encode()
        self.write_json(opening + entries + f'],"next":{next_path}}}'.encode())


def record_json(record: StatusRecord) -> bytes:
    """Return a record as a JSON object, with the devices if the record has them."""
    members: dict[str, object] = {
        "email": record.email,
        "state": record.state,
        "last_seen": None if record.last_seen is None else timestamp(record.last_seen),
        "first_seen": None if record.first_seen is None else timestamp(record.first_seen),
        "client_ip": record.client_ip,
        "client_port": record.client_port,
        "seq": record.seq,
    }
    if record.devices:
        members["devices"] = [
            {**device._asdict(), "last_seen": timestamp(device.last_seen)}
            for device in record.devices
        ]
    return json.dumps(members, separators=(",", ":")).encode()


def history_json(entry: HistoryEntry) -> bytes:
    """Return an event as a JSON object, with the certificate if it is a check-in."""
    event = datagram.encode_update(entry.event)
    if entry.serial is None:
        return event
    device = json.dumps({"issuer": entry.issuer, "serial": entry.serial}, separators=(",", ":"))
    return event[:-1] + b"," + device[1:].encode()
