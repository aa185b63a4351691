"""Listing users from the command line: a table, or JSON lines."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import AsyncIterator, Callable

from tornado_status.api.users import record_json
from tornado_status.config.settings import Settings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.model.presence import State
from tornado_status.model.records import StatusRecord
from tornado_status.store import queries
from tornado_status.store.database import Connection, StatementFailed
from tornado_status.store.log_id import connected

PAGE = 5000  # records read at once
ROW = "{:<40}  {:<7}  {:<20}  {}"


async def show(
    settings: Settings, state: State | None, as_json: bool, say: Callable[[str], None]
) -> None:
    """Print all users, or those in one state: a table, or JSON lines. Raises `StatusError`."""
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
    # An address that was written into the database by hand may hold any character.
    email = record.email if record.email.isprintable() else ascii(record.email)
    address = "" if record.client_ip is None else f"{record.client_ip} port {record.client_port}"
    return ROW.format(email, record.state or "", seen, address).rstrip()


def _summary(counts: Counter[str]) -> str:
    states = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    total = counts.total()
    users = "1 user" if total == 1 else f"{total} users"
    return f"{users}: {states}" if states else users
