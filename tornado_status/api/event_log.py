"""/api/events, /api/announcers, and the exports of the log and of one user's history.

An export is CSV or JSON lines. It is sent page by page at the client's pace, so neither the server
nor the database holds more than one page. If the server cannot finish an export, it closes the
connection without HTTP's last chunk: the client sees that the export is incomplete.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urlencode

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import DEFAULT_LIMIT, ReadHandler
from tornado_status.api.users import history_json
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import HistoryEntry, timestamp
from tornado_status.pki.announcer_keys import is_revoked
from tornado_status.pki.certificates import read_pem
from tornado_status.wire import datagram

MAX_EVENTS = 100_000  # a page of about 20 MB
EXPORT_PAGE = 1000  # entries in memory: about a third of a megabyte
READ_TIMEOUT_S = 60.0  # for a client to read one page of an export

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
    """The log after a sequence number, without gaps, each event as in a datagram."""

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
        try:
            if form == "csv":
                self.write(csv_lines([COLUMNS]))
            await self._write(first, form)
            async for page in pages:
                await self._write(page, form)
        except (StoreError, TimeoutError, StreamClosedError) as error:
            structlog.get_logger().warning(
                "export cut off",
                email=self.check_in.email,
                path=self.request.path,
                reason=str(error),
            )
            connection = self.request.connection
            if isinstance(connection, HTTP1Connection):
                connection.stream.close()

    async def _write(self, entries: Sequence[HistoryEntry], form: str) -> None:
        if form == "csv":
            self.write(csv_lines([csv_row(entry) for entry in entries]))
        else:
            self.write(b"".join(history_json(entry) + b"\n" for entry in entries))
        async with asyncio.timeout(READ_TIMEOUT_S):
            await self.flush()


class EventsExportHandler(ExportHandler):
    """The log in order, after a number or from its oldest event, up to the head at the start."""

    async def get(self, form: str) -> None:
        self.require_reader()
        after = self.integer("after", 0, 0, datagram.MAX_SEQ) if self.has("after") else None
        await self.export("events", form, self._pages(after))

    async def _pages(self, after: int | None) -> AsyncIterator[list[HistoryEntry]]:
        end, entries = await self.store.log(after, EXPORT_PAGE)
        while entries:
            yield entries
            after = entries[-1].event.seq
            if after >= end:
                return
            _, entries = await self.store.log(after, min(EXPORT_PAGE, end - after))


class HistoryExportHandler(ExportHandler):
    """One user's events, newest first: for readers, and for the user."""

    async def get(self, text: str, form: str) -> None:
        email = self.readable_email(text)
        await self.export("history", form, self._pages(email))

    async def _pages(self, email: str) -> AsyncIterator[list[HistoryEntry]]:
        before = None
        while True:
            page = await self.store.history(email, before, EXPORT_PAGE)
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
