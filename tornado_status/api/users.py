"""/api/users: all users, one user with enrolment and removal, and one user's history."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

from tornado_status.api.error_page.render import Advice
from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import DEFAULT_LIMIT, ReadHandler, next_piece
from tornado_status.errors import StoreError
from tornado_status.model.presence import PresenceTimes
from tornado_status.model.records import HistoryEntry, StatusRecord, UserPage, timestamp
from tornado_status.wire.event_object import encode_update
from tornado_status.wire.json_members import MAX_SEQ

MAX_USERS = 10_000  # a page of about 1.5 MB
MAX_HISTORY = 10_000  # a page of about 3 MB, for readers
MAX_OWN_HISTORY = 1000  # for others
SNAPSHOT_GOOD_S = 15  # how long a client may keep a page, whose states change without an event


class UserHandler(ReadHandler):
    """One user's record: for readers, and for the user. Admins enrol and remove users."""

    async def get(self, text: str) -> None:
        email = self.readable_email(text)
        async with self.turn():
            record = await self.store.user(email)
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

    async def get(self) -> None:
        self.require_reader()
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_USERS)
        after = self.get_query_argument("after", "")
        async with self.turn():
            await self._send_page(after, limit)

    async def _send_page(self, after: str, limit: int) -> None:
        if "If-None-Match" in self.request.headers:
            span = await self.store.log_span()
            if self.is_unchanged(_etag(span.log_id, span.head)):
                return
        page = await self.store.users(after, next_piece(limit))
        self.set_header("ETag", _etag(page.log_id, page.head))
        rest, last = None, page.following
        if page.following is not None and limit > len(page.users):
            last = await self.store.last_user(after, limit)
            rest = self._rest(page, limit, last)
        next_path = "null"
        if last is not None:
            query = urlencode({"after": last, "limit": limit})
            next_path = json.dumps(f"/api/users?{query}")
            self.set_next(f"/api/users?{query}")
        presence = json.dumps(dataclasses.asdict(self.presence), separators=(",", ":"))
        opening = f'{{"log":"{page.log_id}","head":{page.head},"presence":{presence},"users":['
        closing = f'],"next":{next_path}}}'
        await self.send_list(opening.encode(), _records(page), rest, closing.encode())

    async def _rest(
        self, page: UserPage, limit: int, last: str | None
    ) -> AsyncIterator[list[bytes]]:
        """Yield the records after `page`, up to the user `last` or to the last of all."""
        log_id = page.log_id
        while page.following is not None:
            page = await self.store.users(page.following, next_piece(limit), last)
            if page.log_id != log_id:
                raise StoreError("a new log has begun")
            yield _records(page)

    def compute_etag(self) -> str | None:
        """See `RequestHandler.compute_etag`: each answer has one already."""
        return self._headers.get("ETag")


def _records(page: UserPage) -> list[bytes]:
    return [record_json(record) for record in page.users]


def _etag(log_id: uuid.UUID, head: int) -> str:
    # Weak, because the records were read after the head and may be newer. The time is in it because
    # a user becomes late without an event.
    return f'W/"{log_id}-{head}-{int(time.time() / SNAPSHOT_GOOD_S)}"'


class HistoryHandler(ReadHandler):
    """A page of one user's events, newest first: for readers, and for the user.

    Large pages are for readers.
    """

    async def get(self, text: str) -> None:
        email = self.readable_email(text)
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_HISTORY)
        before = self.integer("before", 0, 1, MAX_SEQ) if self.has("before") else None
        if limit > MAX_OWN_HISTORY and not self.access.may_read_all(self.check_in.email):
            self.forbid(f"Only readers may have pages above {MAX_OWN_HISTORY}", Advice.READERS)
        async with self.turn():
            await self._send_page(email, before, limit)

    async def _send_page(self, email: str, before: int | None, limit: int) -> None:
        page = await self.store.history(email, before, next_piece(limit))
        first = [history_json(entry) for entry in page.entries]
        rest, following = None, page.before
        left = limit - len(first)
        if page.before is not None and left:
            end = await self.store.history_end(email, page.before, left)
            # Each event names the one before it, so what lies between these two does not change.
            hashed = hashlib.sha256(first[0] + b"%d" % end.seq).hexdigest()
            if self.is_unchanged(f'W/"{hashed[:32]}"'):
                return
            rest, following = self._rest(email, page.before, left), end.before
        next_path = "null"
        if following is not None:
            query = urlencode({"before": following, "limit": limit})
            path = f"/api/users/{quote(email, safe='@')}/history?{query}"
            next_path = json.dumps(path)
            self.set_next(path)
        opening = f'{{"email":{json.dumps(email)},"events":['
        await self.send_list(opening.encode(), first, rest, f'],"next":{next_path}}}'.encode())

    async def _rest(self, email: str, before: int, left: int) -> AsyncIterator[list[bytes]]:
        """Yield up to `left` entries from before the event `before`."""
        following: int | None = before
        while left and following is not None:
            page = await self.store.history(email, following, next_piece(left))
            yield [history_json(entry) for entry in page.entries]
            left, following = left - len(page.entries), page.before


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
    event = encode_update(entry.event)
    if entry.serial is None:
        return event
    device = json.dumps({"issuer": entry.issuer, "serial": entry.serial}, separators=(",", ":"))
    return event[:-1] + b"," + device[1:].encode()
