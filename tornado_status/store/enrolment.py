"""Enrolment: users are enrolled, removed, and erased from the log.

Each change of a record is an entry of the log, written under the head lock like any other. The
writer of a server announces its own changes. A command leaves that to a server (`Outbox`).
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence

from tornado_status.errors import ConfigError, StoreError, StoreUnavailable
from tornado_status.model.records import ERASED_EMAIL, Event, EventKind
from tornado_status.store import migrate, queries
from tornado_status.store.batch_statements import LOCK_HEAD, array
from tornado_status.store.database import Connection, Pool, Row, StatementFailed
from tornado_status.store.group_commit import GroupCommit, Work

CHUNK = 512  # users a transaction: no more rows than a batch of check-ins
ERASE_CHUNK = 5000  # entries scanned by one statement: at worst all of them are rewritten
COMMAND_TIMEOUT_S = 30.0  # for one statement of a command
POLL_S = 1.0  # how late a server announces a command's entries at most
TAKE = 512  # entries of commands announced at once
ANNOUNCED_TIMEOUT_S = 5.0  # some polls of a server: then none is running

# A record without a number was made by hand, and is enrolled by this.
_ENROL = """\
WITH fresh AS MATERIALIZED (
    SELECT w.email, row_number() OVER (ORDER BY w.email) AS k
    FROM (SELECT DISTINCT email FROM unnest({emails}::text[]) AS e(email)) w
    LEFT JOIN user_status s ON s.email = w.email WHERE s.seq IS NULL
), now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at FROM head
), log AS (
    INSERT INTO check_in (seq, at, event, email) SELECT base + k, at, 'enrolled', email
    FROM fresh, now
), status AS (
    INSERT INTO user_status (email, seq) SELECT email, base + k FROM fresh, now ORDER BY email
    ON CONFLICT (email) DO UPDATE SET seq = excluded.seq
), moved AS (
    UPDATE head SET seq = head.seq + (SELECT count(*) FROM fresh), at = now.at FROM now
){outbox}
SELECT base, at, ARRAY(SELECT email FROM fresh ORDER BY k), NULL FROM now"""

_REMOVE = """\
WITH fresh AS MATERIALIZED (
    SELECT s.email, s.seq, s.last_seen, row_number() OVER (ORDER BY s.email) AS k
    FROM (SELECT DISTINCT email FROM unnest({emails}::text[]) AS e(email)) w
    JOIN user_status s ON s.email = w.email
), now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at FROM head
), log AS (
    INSERT INTO check_in (seq, at, event, email, previous, last_seen)
    SELECT base + k, at, 'removed', email, fresh.seq, last_seen FROM fresh, now
), status AS (
    DELETE FROM user_status u USING fresh WHERE u.email = fresh.email
), moved AS (
    UPDATE head SET seq = head.seq + (SELECT count(*) FROM fresh), at = now.at FROM now
){outbox}
SELECT base, at, ARRAY(SELECT email FROM fresh ORDER BY k),
       ARRAY(SELECT last_seen FROM fresh ORDER BY k) FROM now"""

_OUTBOX = ", outbox AS (INSERT INTO unannounced SELECT base + k FROM fresh, now)"

# It locks no row that another writer waits for: entries are written once, and pruning is repeated.
_ERASE = """\
WITH erased AS (
    UPDATE check_in SET event = 'erased', email = %(erased)s, client_ip = NULL,
        client_port = NULL, issuer = NULL, serial = NULL, previous = NULL, last_seen = NULL
    WHERE seq > %(after)s AND seq <= %(to)s AND email = %(email)s RETURNING seq
)
SELECT count(*) FROM erased"""

# Alerts about the user that are not delivered yet.
_ERASE_MESSAGES = "DELETE FROM alert_message WHERE email = %(email)s"

_TAKE = f"""\
WITH taken AS (
    DELETE FROM unannounced WHERE seq IN (SELECT seq FROM unannounced ORDER BY seq LIMIT {TAKE})
    RETURNING seq
)
SELECT {queries.ENTRY} FROM taken JOIN check_in c ON c.seq = taken.seq ORDER BY c.seq"""  # noqa: S608

_SESSION = """\
SET standard_conforming_strings = on;
SET default_transaction_isolation = 'read committed';
SET synchronous_commit = on;
SET statement_timeout = {timeout_ms};
SET jit = off"""


def enrol(emails: Sequence[str], *, by_command: bool = False) -> Work:
    """Return the work that enrols up to `CHUNK` users; see `changed` for its result.

    `by_command`: a server announces it later.
    """
    return _work(_ENROL, EventKind.ENROLLED, emails, by_command)


def remove(emails: Sequence[str], *, by_command: bool = False) -> Work:
    """Return the work that removes up to `CHUNK` users with their records; see `enrol`."""
    return _work(_REMOVE, EventKind.REMOVED, emails, by_command)


def changed(rows: list[Row]) -> list[str]:
    """Return the e-mails that the work has enrolled or removed; the others needed no change."""
    emails: list[str] = rows[0][2]
    return emails


def _work(statement: str, kind: EventKind, emails: Sequence[str], by_command: bool) -> Work:
    def events(rows: list[Row]) -> list[Event]:
        base, at, found, moments = rows[0]
        at = at.astimezone(datetime.UTC)
        moments = moments or [None] * len(found)
        return [
            Event(
                base + k,
                kind,
                email,
                None if last_seen is None else last_seen.astimezone(datetime.UTC),
                None,
                None,
                at,
            )
            for k, (email, last_seen) in enumerate(zip(found, moments, strict=True), start=1)
        ]

    # Canonical e-mails: nothing in them but an apostrophe needs care. See `identity`.
    sql = statement.format(emails=array(emails), outbox=_OUTBOX if by_command else "")
    return Work(sql, events, emails)


class Outbox:
    """Announces entries that commands have written: one server each, within about `POLL_S`."""

    def __init__(self, commit: GroupCommit, pool: Pool) -> None:
        self._commit = commit
        self._pool = pool

    async def run(self) -> None:
        """Poll for such entries until cancelled."""
        while True:
            await self._commit.connected.wait()
            try:
                while await self.take() == TAKE:
                    pass
            except StoreError:
                pass  # the writer logs it; the entries wait
            await asyncio.sleep(POLL_S)

    async def take(self) -> int:
        """Announce up to `TAKE` unannounced entries; return how many. Raises `StoreError`."""
        async with self._pool.connection() as connection:
            (waiting,) = await connection.fetch_one("SELECT EXISTS (SELECT FROM unannounced)")
        if not waiting:
            return 0
        work = Work(_TAKE, lambda rows: [queries.entry(row) for row in rows], ())
        return len(await self._commit.write(work))


class OfflineEnrolment:
    """Enrols, removes and erases from a command, on its own connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def prepare(self) -> None:
        """Call first. Raises `ConfigError` if the database is of another version."""
        try:
            revision = await migrate.current(self._connection)
        except StatementFailed as error:
            raise StoreUnavailable(f"the database refuses: {error}") from error
        if revision != migrate.REVISION and not migrate.check(revision):
            raise ConfigError(
                "database.url: the database is not of this version: start its server once"
            )
        timeout_ms = int(COMMAND_TIMEOUT_S * 1000 * 0.8)
        await self._execute(_SESSION.format(timeout_ms=timeout_ms))

    async def enrol(self, emails: Sequence[str]) -> set[str]:
        """Enrol users; return those who were not enrolled. Raises `StoreUnavailable`."""
        return await self._write(_ENROL, EventKind.ENROLLED, emails)

    async def remove(self, emails: Sequence[str]) -> set[str]:
        """Remove users; return those who were known. Raises `StoreUnavailable`."""
        return await self._write(_REMOVE, EventKind.REMOVED, emails)

    async def announced(self) -> bool:
        """Wait until servers have announced all entries of commands; return False if none does."""
        try:
            async with asyncio.timeout(ANNOUNCED_TIMEOUT_S):
                while True:
                    [(waiting,)] = await self._execute("SELECT EXISTS (SELECT FROM unannounced)")
                    if not waiting:
                        return True
                    await asyncio.sleep(0.1)
        except TimeoutError:
            return False

    async def erase(self, email: str) -> int:
        """Erase one user from the log, up to its head now; return from how many entries.

        The whole log is scanned: the chain of a user's entries ends at an earlier removal.
        Idempotent. Raises `StoreUnavailable`.
        """
        [(cursor, head)] = await self._execute(
            "SELECT coalesce((SELECT min(seq) FROM check_in) - 1, seq), seq FROM head"
        )
        total = 0
        while cursor < head:
            to = min(cursor + ERASE_CHUNK, head)
            [(count,)] = await self._execute(
                _ERASE, {"erased": ERASED_EMAIL, "after": cursor, "to": to, "email": email}
            )
            total += count
            cursor = to
        await self._execute(_ERASE_MESSAGES, {"email": email})
        return total

    async def _write(self, statement: str, kind: EventKind, emails: Sequence[str]) -> set[str]:
        done: set[str] = set()
        for begin in range(0, len(emails), CHUNK):
            work = _work(statement, kind, emails[begin : begin + CHUNK], by_command=True)
            done.update(changed(await self._execute(f"{LOCK_HEAD}; {work.statement}")))
        return done

    async def _execute(self, sql: str, parameters: dict[str, object] | None = None) -> list[Row]:
        try:
            return await self._connection.execute(sql, parameters, timeout_s=COMMAND_TIMEOUT_S)
        except StatementFailed as error:
            raise StoreUnavailable(f"the database refuses: {error}") from error
