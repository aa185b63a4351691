"""/api/users and /api/users/{email}, with enrolling and removing; /api/events, /api/announcers."""

from __future__ import annotations

import json
import time
import uuid
from typing import Protocol
from urllib.parse import quote, urlencode

from tornado_status.api.access import Access
from tornado_status.api.problem import Handler, Problem
from tornado_status.errors import HistoryGone
from tornado_status.model.email_address import parse_email
from tornado_status.model.records import (
    EventPage,
    HistoryEntry,
    HistoryPage,
    LogSpan,
    StatusRecord,
    UserPage,
    timestamp,
)
from tornado_status.wire import datagram

DEFAULT_LIMIT = 1000
SNAPSHOT_GOOD_S = 15  # how long a state may be behind in a page that is kept by its ETag
MAX_EVENTS = 100_000  # a page of about 20 MB
MAX_HISTORY = 10_000  # a page of about 3 MB
MAX_USERS = 10_000  # a page of about 1.5 MB


class Reader(Protocol):
    """The part of the store that these handlers need."""

    async def user(self, email: str) -> StatusRecord | None: ...

    async def users(self, after: str, limit: int) -> UserPage: ...

    async def history(self, email: str, before: int | None, limit: int) -> HistoryPage: ...

    async def log(self, after: int | None, limit: int) -> tuple[int, list[HistoryEntry]]: ...

    async def events(self, after: int, limit: int) -> EventPage: ...

    async def log_span(self) -> LogSpan: ...

    async def announcers(self) -> tuple[uuid.UUID, list[str]]: ...


class Registry(Reader, Protocol):
    """The same, and what admins may do."""

    async def enrol(self, email: str) -> bool: ...

    async def remove(self, email: str) -> bool: ...


class ReadHandler(Handler):
    """Base of what only readers may see."""

    store: Reader
    access: Access

    def require_reader(self) -> None:
        if not self.access.may_read_all(self.check_in.email):
            self.refuse("Only readers may see this")

    def readable(self, text: str) -> str:
        """Return the canonical form of an e-mail in the path that the caller may read about."""
        if text.lower() == self.check_in.email:
            return self.check_in.email
        self.require_reader()
        return self.canonical(text)

    def canonical(self, text: str) -> str:
        try:
            return parse_email(text)
        except ValueError as error:
            raise Problem(400, str(error)) from error

    def has(self, name: str) -> bool:
        return self.get_query_argument(name, None) is not None

    def set_next(self, path: str) -> None:
        """Name the following page (RFC 8288)."""
        self.set_header("Link", f'<{path}>; rel="next"')

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdecimal() and len(text) <= 19):
            raise Problem(400, f"{name}: expected a whole number, {low}-{high}")
        value = int(text)
        if not low <= value <= high:
            raise Problem(400, f"{name}: expected {low}-{high}")
        return value


class UserHandler(ReadHandler):
    """One user's record: for readers, and for the user. Admins enrol and remove."""

    store: Registry

    async def get(self, text: str) -> None:
        record = await self.store.user(self.readable(text))
        if record is None:
            raise Problem(404, "No check-in is recorded for this e-mail")
        self.write_json(record_json(record))

    async def put(self, text: str) -> None:
        enrolled = await self.store.enrol(self.administered(text))
        self.set_status(201 if enrolled else 204)

    async def delete(self, text: str) -> None:
        if not await self.store.remove(self.administered(text)):
            raise Problem(404, "This e-mail is not enrolled")
        self.set_status(204)

    def administered(self, text: str) -> str:
        if not self.access.may_administer(self.check_in.email):
            self.refuse("Only admins may enrol and remove users")
        return self.canonical(text)


class UsersHandler(ReadHandler):
    """Everybody's record, a page at a time, in order of their e-mail."""

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
        following = "null"
        if page.following is not None:
            query = urlencode({"after": page.following, "limit": limit})
            following = json.dumps(f"/api/users?{query}")
            self.set_next(f"/api/users?{query}")
        records = b",".join(record_json(record) for record in page.users)
        opening = f'{{"log":"{page.log_id}","head":{page.head},"users":['.encode()
        self.write_json(opening + records + f'],"next":{following}}}'.encode())

    def compute_etag(self) -> str | None:
        """See `RequestHandler.compute_etag`: by the head and a rough time."""
        return self._etag


def _etag(log_id: uuid.UUID, head: int) -> str:
    # Weak: the records were read after the head, and may be newer than it. With the time, since a
    # user grows late without an event.
    return f'W/"{log_id}-{head}-{int(time.time() / SNAPSHOT_GOOD_S)}"'


class HistoryHandler(ReadHandler):
    """One user's entries of the log, the newest first: for readers, and for the user."""

    async def get(self, text: str) -> None:
        email = self.readable(text)
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_HISTORY)
        before = self.integer("before", 0, 1, datagram.MAX_SEQ) if self.has("before") else None
        page = await self.store.history(email, before, limit)
        following = "null"
        if page.before is not None:
            query = urlencode({"before": page.before, "limit": limit})
            path = f"/api/users/{quote(email, safe='@')}/history?{query}"
            following = json.dumps(path)
            self.set_next(path)
        entries = b",".join(history_json(entry) for entry in page.entries)
        opening = f'{{"email":{json.dumps(email)},"events":['.encode()
        self.write_json(opening + entries + f'],"next":{following}}}'.encode())


class EventsHandler(ReadHandler):
    """The log after a number, gapless and in order, each event as in a datagram."""

    async def get(self) -> None:
        self.require_reader()
        after = self.integer("after", 0, 0, datagram.MAX_SEQ)
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_EVENTS)
        try:
            page = await self.store.events(after, limit)
        except HistoryGone as error:
            raise Problem(410, f"{error}; start again from /api/users") from error
        if page.events and page.events[-1].seq < page.head:
            query = urlencode({"after": page.events[-1].seq, "limit": limit})
            self.set_next(f"/api/events?{query}")
        events = b",".join(datagram.encode_update(event) for event in page.events)
        opening = f'{{"log":"{page.log_id}","head":{page.head},"events":['.encode()
        self.write_json(opening + events + b"]}")


class AnnouncersHandler(ReadHandler):
    """The certificates of who signs datagrams, did in the last hour, or soon will."""

    async def get(self) -> None:
        self.require_reader()
        log_id, certificates = await self.store.announcers()
        self.write_json(json.dumps({"log": str(log_id), "announcers": certificates}).encode())


def record_json(record: StatusRecord) -> bytes:
    """Return a record as a JSON object, with the devices where they are known."""
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
    """Return an entry of a user's history: the event, and the certificate of a check-in."""
    event = datagram.encode_update(entry.event)
    if entry.serial is None:
        return event
    device = json.dumps({"issuer": entry.issuer, "serial": entry.serial}, separators=(",", ":"))
    return event[:-1] + b"," + device[1:].encode()
