"""The log id: shown, and renewed by hand.

The store notices most restored or promoted databases by their system identifier or timeline. It
cannot notice a copied data directory, or a dump restored into the same server: use `renew`.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tornado_status.config.settings import EMBEDDED, DatabaseSettings
from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.store.database import Connection, StatementFailed, Values, parse_url
from tornado_status.store.embedded.postgres import EmbeddedPostgres

RENEW_TIMEOUT_S = 30.0  # the lock on the head, and every server's connection ended

_SHOW = "SELECT log_id, seq, at FROM head"

# The timeline is that of the WAL being written: the control file has a new one only after the next
# checkpoint.
_SYSTEM_IDENTIFIER = "SELECT system_identifier FROM pg_control_system()"
_TIMELINE_ID = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"

# Errors of managed databases, or of others that speak the protocol: insufficient_privilege,
# undefined_function, undefined_table (a function that returns rows), feature_not_supported.
_NOT_AVAILABLE = {"42501", "42883", "42P01", "0A000"}

# While the head is locked no entry is written. Connected servers know the old log id: they are
# disconnected, wait for the lock, and read the new one when they connect again. Times of the future
# are of a clock that was wrong. In a new log they may fall: it goes on from the last entry that
# keeps its time, so readers get those behind it anew.
_RENEW = """\
SELECT seq FROM head FOR UPDATE;
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name');
WITH here AS MATERIALIZED (
    SELECT clock_timestamp() AS at
), last AS MATERIALIZED (
    SELECT max(seq) AS seq FROM (
        SELECT seq FROM check_in c, here WHERE c.at <= here.at ORDER BY seq DESC LIMIT 1
    ) c
), log AS (
    UPDATE check_in c SET at = here.at,
        last_seen = CASE WHEN c.last_seen > here.at THEN here.at ELSE c.last_seen END
    FROM here, last WHERE c.seq > coalesce(last.seq, 0) RETURNING c.seq
), step AS (
    INSERT INTO log_step (log_id, parent, fork, at)
    SELECT gen_random_uuid(), head.log_id, coalesce((SELECT min(seq) FROM log) - 1, head.seq),
           here.at
    FROM head, here RETURNING log_id
), status AS (
    UPDATE user_status u SET last_seen = here.at,
        first_seen = CASE WHEN u.first_seen > here.at THEN here.at ELSE u.first_seen END
    FROM here WHERE u.last_seen > here.at
)
UPDATE head SET log_id = step.log_id, system_identifier = %s, timeline_id = %s,
    at = least(head.at, here.at)
FROM here, step RETURNING head.log_id, seq, head.at
"""


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """Which database this is; None for what it does not reveal."""

    system_identifier: int | None
    timeline_id: int | None

    def warnings(self) -> list[str]:
        """Return what the server will not notice, for operators."""
        found = []
        if self.system_identifier is None:
            found.append(
                "it does not tell its system identifier (pg_control_system), so a restore is not "
                "noticed: run `tornado-status log new` after one"
            )
        if self.timeline_id is None:
            found.append(
                "it does not tell its timeline (pg_walfile_name), so a promoted standby is not "
                "noticed: run `tornado-status log new` after a failover or a restore"
            )
        return found


async def database_identity(connection: Connection) -> DatabaseIdentity:
    """Ask a database for its identity. Raises `StoreUnavailable` and `StatementFailed`."""
    return DatabaseIdentity(
        await _ask(connection, _SYSTEM_IDENTIFIER), await _ask(connection, _TIMELINE_ID)
    )


async def _ask(connection: Connection, query: str) -> int | None:
    try:
        (answer,) = await connection.fetch_one(query)
    except StatementFailed as error:
        if error.sqlstate in _NOT_AVAILABLE:
            return None
        raise
    return None if answer is None else int(answer)


@dataclass(frozen=True, slots=True)
class LogState:
    """The log id, the head, and when the head was written."""

    log_id: uuid.UUID
    head: int
    at: datetime.datetime


async def show(settings: DatabaseSettings) -> LogState:
    """Return the log id and the head. Raises `ConfigError` and `StoreUnavailable`."""
    async with connected(settings, writable=False) as connection:
        return await _state(connection, _SHOW)


async def renew(settings: DatabaseSettings) -> LogState:
    """Begin a new log at the same head, and return it. Running servers follow at once.

    Times that are ahead of the database's clock are set to the present.

    Raises `ConfigError` and `StoreUnavailable`.
    """
    async with connected(settings, writable=True) as connection:
        try:
            here = await database_identity(connection)
        except StatementFailed as error:
            raise StoreUnavailable(f"the database refuses: {error}") from error
        return await _state(connection, _RENEW, [here.system_identifier, here.timeline_id])


async def _state(connection: Connection, sql: str, parameters: Values | None = None) -> LogState:
    try:
        log_id, head, at = await connection.fetch_one(sql, parameters, timeout_s=RENEW_TIMEOUT_S)
    except StatementFailed as error:
        if error.sqlstate == "42P01":  # undefined_table
            raise ConfigError("database.url: no log yet: start the server once") from error
        if error.sqlstate == "42703":  # undefined_column
            raise ConfigError("database.url: of an older version: start the server once") from error
        raise StoreUnavailable(f"the database refuses: {error}") from error
    return LogState(uuid.UUID(log_id), head, at.astimezone(datetime.UTC))


@asynccontextmanager
async def connected(settings: DatabaseSettings, *, writable: bool) -> AsyncIterator[Connection]:
    """Connect; an embedded PostgreSQL is that of a running server, or is started for this."""
    started: EmbeddedPostgres | None = None
    if settings.url == EMBEDDED:
        embedded = EmbeddedPostgres(settings.data_dir)
        parameters = embedded.running()
        if parameters is None:
            if not (settings.data_dir / "PG_VERSION").exists():
                raise ConfigError(
                    f"database.data_dir: no database in {settings.data_dir}: start the server once"
                )
            await embedded.start()
            started, parameters = embedded, embedded.parameters
    else:
        parameters = parse_url(settings.url)
    try:
        connection = await Connection.open(
            parameters, settings.connect_timeout_s, writable=writable
        )
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        if started is not None:
            await started.stop()
