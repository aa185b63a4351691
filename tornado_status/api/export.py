"""Exports: the log, or one user's history, whole, as CSV or as JSON lines.

Streamed a page at a time, so that neither the server nor the database holds more than that; the
client's reading sets the pace. An export that cannot be finished is cut off, never ended early: a
client sees that it is not whole.
"""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Sequence

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from tornado_status.api.problem import Problem
from tornado_status.api.users import ReadHandler, history_json
from tornado_status.errors import HistoryGone, StoreError
from tornado_status.model.records import HistoryEntry, timestamp
from tornado_status.wire import datagram

PAGE = 1000  # entries in memory: about a third of a megabyte
READ_TIMEOUT_S = 60.0  # a client that takes no page for so long is cut off

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
TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}


class ExportHandler(ReadHandler):
    """Base of the two exports: writes pages of entries in the form that the path asks for."""

    async def export(self, name: str, form: str, pages: AsyncIterator[list[HistoryEntry]]) -> None:
        try:
            first: list[HistoryEntry] = await anext(pages, [])
        except HistoryGone as error:
            raise Problem(410, str(error)) from error
        self.set_header("Content-Type", TYPES[form])
        self.set_header("Content-Disposition", f'attachment; filename="{name}.{form}"')
        try:
            if form == "csv":
                self.write(csv_lines([COLUMNS]))
            await self._write(first, form)
            async for page in pages:
                await self._write(page, form)
        except (StoreError, TimeoutError, StreamClosedError) as error:
            structlog.get_logger().warning(
                "export cut off", who=self.check_in.email, path=self.request.path, reason=str(error)
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
    """The log in order, after a number or from its oldest entry, up to the head of this moment."""

    async def get(self, form: str) -> None:
        self.require_reader()
        after = self.integer("after", 0, 0, datagram.MAX_SEQ) if self.has("after") else None
        await self.export("events", form, self._pages(after))

    async def _pages(self, after: int | None) -> AsyncIterator[list[HistoryEntry]]:
        end, entries = await self.store.log(after, PAGE)
        while entries:
            yield entries
            after = entries[-1].event.seq
            if after >= end:
                return
            _, entries = await self.store.log(after, min(PAGE, end - after))


class HistoryExportHandler(ExportHandler):
    """One user's entries, the newest first: for readers, and for the user."""

    async def get(self, text: str, form: str) -> None:
        email = self.readable(text)
        await self.export("history", form, self._pages(email))

    async def _pages(self, email: str) -> AsyncIterator[list[HistoryEntry]]:
        before = None
        while True:
            page = await self.store.history(email, before, PAGE)
            yield page.entries
            before = page.before
            if before is None:
                return


def csv_row(entry: HistoryEntry) -> tuple[object, ...]:
    """Return an entry as the columns of `COLUMNS`; what it lacks is empty."""
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
    # A spreadsheet takes such a cell for a formula, and an e-mail address may begin like one.
    return f"'{text}" if text and text[0] in "=+-@\t\r" else text
