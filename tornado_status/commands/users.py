"""The `users` command: enrol, remove, erase and list people, in the database itself.

It works whether a server runs or not. What it writes is in the log like everything else, and a
running server announces it.
"""

from __future__ import annotations

import asyncio
import datetime
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from tornado_status.api.users import record_json
from tornado_status.config import Settings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.model.email_address import parse_email
from tornado_status.model.presence import State
from tornado_status.model.records import StatusRecord
from tornado_status.store import queries
from tornado_status.store.database import Connection, StatementFailed
from tornado_status.store.enrolment import OfflineEnrolment
from tornado_status.store.log_id import connected

PAGE = 5000  # records read at once
REDRAW_S = 1.0  # with --watch
MAX_LINE = 1000  # characters of a line of standard input: an e-mail has 64
HOME, CLEAR_REST, CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"

ROW = "{:<40}  {:<7}  {:<20}  {}"

Say = Callable[[str], None]


def emails(words: Sequence[str], given: Iterable[str]) -> list[str]:
    """Return the canonical form of each e-mail of the command line, or of the lines of `given`
    where the command line has a `-`. Raises `ConfigError` at the first that is none.
    """
    found: dict[str, None] = {}
    for word in words:
        for text in (line.strip() for line in given) if word == "-" else (word,):
            if not text:
                continue
            try:
                found[parse_email(text)] = None
            except ValueError as error:
                shown = ascii(text if len(text) <= MAX_LINE else f"{text[:MAX_LINE]}...")
                raise ConfigError(f"{shown}: {_one_line(error)}") from error
    return list(found)


async def add(settings: Settings, people: Sequence[str], say: Say) -> int:
    """Enrol people; return how many were there already. Raises `StatusError`."""
    async with connected(settings.database, writable=True) as connection:
        clerk = OfflineEnrolment(connection)
        await clerk.prepare()
        enrolled = await clerk.enrol(people)
    for email in people:
        say(f"{email}: {'enrolled' if email in enrolled else 'already there'}")
    return len(people) - len(enrolled)


async def remove(settings: Settings, people: Sequence[str], say: Say) -> int:
    """Remove people with their records; return how many are unknown. Raises `StatusError`."""
    async with connected(settings.database, writable=True) as connection:
        clerk = OfflineEnrolment(connection)
        await clerk.prepare()
        removed = await clerk.remove(people)
    for email in people:
        say(f"{email}: {'removed' if email in removed else 'unknown'}")
    return len(people) - len(removed)


async def erase(settings: Settings, people: Sequence[str], say: Say) -> int:
    """Remove people, and blank them in the log; return how many are unknown.

    `removed` is announced with the e-mail, or nobody could tell whom to forget; only then is that
    entry blanked, too. Raises `StatusError`.
    """
    unknown = 0
    async with connected(settings.database, writable=True) as connection:
        clerk = OfflineEnrolment(connection)
        await clerk.prepare()
        removed = await clerk.remove(people)
        announced = bool(removed) and await clerk.announced()
        for email in people:
            entries = await clerk.erase(email)
            if not entries:
                unknown += 1
                say(f"{email}: unknown")
                continue
            note = ""
            if email in removed and not announced:
                note = "; not announced by name: no server took it in time"
            say(f"{email}: erased in {entries} entries of the log{note}")
    return unknown


async def show(settings: Settings, state: State | None, as_json: bool, say: Say) -> None:
    """Print everybody, or who is in one state: a table, or JSON lines. Raises `StatusError`."""
    counts: Counter[str] = Counter()
    if not as_json:
        say(ROW.format("E-MAIL", "STATE", "LAST SEEN (UTC)", "FROM"))
    async with connected(settings.database, writable=False) as connection:
        async for record in _records(connection, settings.presence.interval_s):
            counts[record.state or ""] += 1
            if state is None or record.state == state:
                say(record_json(record).decode() if as_json else _row(record))
    if not as_json:
        say(_summary(counts))


async def watch(settings: Settings, state: State | None) -> None:
    """Redraw the table every second, as much of it as the terminal holds, until cancelled."""
    while True:
        try:
            async with connected(settings.database, writable=False) as connection:
                while True:
                    records = _records(connection, settings.presence.interval_s)
                    await _draw(records, state)
                    await asyncio.sleep(REDRAW_S)
        except StoreUnavailable as error:
            _put([f"database away: {error}"])
            await asyncio.sleep(REDRAW_S)


async def _draw(records: AsyncIterator[StatusRecord], state: State | None) -> None:
    width, height = shutil.get_terminal_size()
    room = max(1, height - 3)  # the heading, what there is no room for, and the summary
    counts: Counter[str] = Counter()
    lines: list[str] = []
    fitting = 0
    async for record in records:
        counts[record.state or ""] += 1
        if state is None or record.state == state:
            fitting += 1
            if len(lines) < room:
                lines.append(_row(record))
    more = f"and {fitting - len(lines)} more" if fitting > len(lines) else ""
    heading = ROW.format("E-MAIL", "STATE", "LAST SEEN (UTC)", "FROM")
    _put([line[:width] for line in (heading, *lines, more, _summary(counts)) if line])


def _put(lines: Sequence[str]) -> None:
    text = "\n".join(f"{line}{CLEAR_LINE}" for line in lines)
    sys.stdout.write(f"{HOME}{text}{CLEAR_REST}")
    sys.stdout.flush()


async def _records(connection: Connection, interval_s: float) -> AsyncIterator[StatusRecord]:
    after = ""
    while True:
        try:
            page = await queries.users(connection, after, PAGE, interval_s)
        except StatementFailed as error:
            if error.sqlstate in ("42P01", "42703"):  # no such table, or column
                raise ConfigError(
                    "database.url: the database is not of this version: start its server once"
                ) from error
            raise StoreUnavailable(f"the database refuses: {error}") from error
        for record in page.users:
            yield record
        if page.following is None:
            return
        after = page.following


def _row(record: StatusRecord) -> str:
    seen = "never"
    if record.last_seen is not None:
        seen = record.last_seen.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    # Whoever wrote into the database by hand may have written anything.
    email = record.email if record.email.isprintable() else ascii(record.email)
    address = "" if record.client_ip is None else f"{record.client_ip} port {record.client_port}"
    return ROW.format(email, record.state or "", seen, address).rstrip()


def _summary(counts: Counter[str]) -> str:
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    total = counts.total()
    people = "1 user" if total == 1 else f"{total} users"
    return f"{people}: {states}" if states else people


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
