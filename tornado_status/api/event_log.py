"""/api/log, /api/events, /api/announcers, and the exports of the log and of one user's history.

An export is CSV or JSON lines. Pages and exports are sent in pieces at the client's pace, so
neither the server nor the database holds more than one piece. If the server cannot finish an
answer, it closes the connection without HTTP's last chunk: the client sees that it is incomplete.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import DEFAULT_LIMIT, ReadHandler, next_piece
from tornado_status.api.users import history_json
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import EventPage, HistoryEntry, timestamp
from tornado_status.pki.announcer_keys import is_revoked
from tornado_status.pki.certificates import read_pem
from tornado_status.wire.event_object import encode_update
from tornado_status.wire.json_members import MAX_SEQ

MAX_EVENTS = 100_000  # a page of about 20 MB

COLUMNS = (
    "seq",
    "event",
    "email",
    "at",
    "last_seen",
    "client_ip",
    "client_port",
    "issuer",
    "serial",
)
EXPORT_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


class EventsHandler(ReadHandler):
    """The log after a sequence number, without gaps, each event an object."""

    async def get(self) -> None:
        self.require_reader()
        after = self.integer("after", 0, 0, MAX_SEQ)
        limit = self.integer("limit", DEFAULT_LIMIT, 1, MAX_EVENTS)
        async with self.turn():
            await self._send_page(after, limit)

    async def _send_page(self, after: int, limit: int) -> None:
        try:
            page = await self.store.events(after, next_piece(limit))
        except HistoryGone as error:
            raise Problem(410, f"{error}; start again from /api/users") from error
        last = min(after + limit, page.head)  # numbers have no gaps
        if last < page.head:
            self.set_next(f"/api/events?{urlencode({'after': last, 'limit': limit})}")
        rest = None
        if page.events and page.events[-1].seq < last:
            # A change of events, such as erasing them, is an event itself.
            if self.is_unchanged(f'W/"{page.log_id}-{page.head}"'):
                return
            rest = self._rest(page, last)
        opening = f'{{"log":"{page.log_id}","head":{page.head},"events":['
        await self.send_list(opening.encode(), _updates(page), rest, b"]}")

    async def _rest(self, page: EventPage, last: int) -> AsyncIterator[list[bytes]]:
        """Yield the events after `page`, up to the number `last`."""
        log_id, after = page.log_id, page.events[-1].seq
        while after < last:
            page = await self.store.events(after, next_piece(last - after))
            if page.log_id != log_id:
                raise StoreError("a new log has begun")
            yield _updates(page)
            after = page.events[-1].seq


def _updates(page: EventPage) -> list[bytes]:
    return [encode_update(event) for event in page.events]


class LogHandler(ReadHandler):
    """The log: its id, its head, and from which logs it goes on, the newest step first."""

    async def get(self) -> None:
        self.require_reader()
        span = await self.store.log_span()
        lineage = [
            {
                "log": str(step.log_id),
                "parent": str(step.parent),
                "fork": step.fork,
                "at": None if step.at is None else timestamp(step.at),
            }
            for step in span.lineage
        ]
        members = {"log": str(span.log_id), "head": span.head, "lineage": lineage}
        self.write_json(json.dumps(members, separators=(",", ":")).encode())


class AnnouncersHandler(ReadHandler):
    """The announcer certificates: current, of the last hour, and of the next key rotation."""

    async def get(self) -> None:
        self.require_reader()
        log_id, published = await self.store.announcers()
        certificates = [pem for pem in published if not self._is_revoked(pem)]
        self.write_json(json.dumps({"log": str(log_id), "announcers": certificates}).encode())

    def _is_revoked(self, pem: str) -> bool:
        """Return whether the CRLs in force revoke a certificate: no listener is to trust it."""
        anchors = self.authenticator.trust.anchors
        try:
            return is_revoked(read_pem(pem.encode()), anchors.cas, anchors.crls)
        except ValueError:
            return False  # a listener refuses it


class ExportHandler(ReadHandler):
    """Base of the two exports."""

    async def export(self, name: str, form: str, pages: AsyncIterator[list[HistoryEntry]]) -> None:
        """Send `pages` as a file of this name, in the form `csv` or `jsonl`."""
        try:
            first: list[HistoryEntry] = await anext(pages, [])
        except HistoryGone as error:
            raise Problem(410, str(error)) from error
        self.set_header("Content-Type", EXPORT_TYPES[form])
        self.set_header("Content-Disposition", f'attachment; filename="{name}.{form}"')

        async def pieces() -> AsyncIterator[bytes]:
            yield (csv_lines([COLUMNS]) if form == "csv" else b"") + _lines(first, form)
            async for page in pages:
                yield _lines(page, form)

        await self.send_pieces(pieces())


def _lines(entries: Sequence[HistoryEntry], form: str) -> bytes:
    if form == "csv":
        return csv_lines([csv_row(entry) for entry in entries])
    return b"".join(history_json(entry) + b"\n" for entry in entries)


class EventsExportHandler(ExportHandler):
    """The log in order, after a number or from its oldest event, up to the head at the start."""

    async def get(self, form: str) -> None:
        self.require_reader()
        after = self.integer("after", 0, 0, MAX_SEQ) if self.has("after") else None
        async with self.turn():
            await self.export("events", form, self._pages(after))

    async def _pages(self, after: int | None) -> AsyncIterator[list[HistoryEntry]]:
        end, entries = await self.store.log(after, next_piece())
        while entries:
            yield entries
            after = entries[-1].event.seq
            if after >= end:
                return
            _, entries = await self.store.log(after, next_piece(end - after))


class HistoryExportHandler(ExportHandler):
    """One user's events, newest first: for readers, and for the user."""

    async def get(self, text: str, form: str) -> None:
        email = self.readable_email(text)
        async with self.turn():
            await self.export("history", form, self._pages(email))

    async def _pages(self, email: str) -> AsyncIterator[list[HistoryEntry]]:
        before = None
        while True:
            page = await self.store.history(email, before, next_piece())
            yield page.entries
            before = page.before
            if before is None:
                return


def csv_row(entry: HistoryEntry) -> tuple[object, ...]:
    """Return an entry as the columns of `COLUMNS`; a missing member is an empty cell."""
    event = entry.event
    seen = None if event.last_seen is None else timestamp(event.last_seen)
    return (
        event.seq,
        event.event,
        _cell(event.email),
        seen if event.at is None else timestamp(event.at),
        seen,
        event.client_ip,
        event.client_port,
        _cell(entry.issuer),
        entry.serial,
    )


def csv_lines(rows: Sequence[Sequence[object]]) -> bytes:
    """Return CSV (RFC 4180)."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(text: str | None) -> str | None:
    # A spreadsheet evaluates such a cell as a formula, and an e-mail address may begin like one.
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text
