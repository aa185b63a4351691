"""The schema's migrations, with Alembic: plain SQL in order, under a lock.

Revisions have generations. A server serves a database that a newer version has migrated, as long as
the generation is its own: see docs/architecture.md. Alembic and SQLAlchemy are imported only when
there is something to do.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import structlog

from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.store.database import APPLICATION_NAME, LIVENESS, Connection, StatementFailed
from tornado_status.store.failover import Parameters

REVISION = "g2_0009"  # the newest one in migrations/versions
LOCK = 0x7574_6174_7573  # any number, the same for every server: one migrates, the others wait
LOCK_TIMEOUT_S = 60
# For the tables. While a migration waits for a long reader such as pg_dump, every server's writer
# waits behind it. It waits no longer than this, and tries again after the pause.
TABLE_TIMEOUT_S, TABLE_PAUSE_S = 0.5, 4.5

_SCRIPTS = Path(__file__).parent / "migrations"

_NAME = re.compile(r"(?:g([1-9][0-9]{0,3})_)?([0-9]{4})")

# Running servers are of the previous generation: their prepared statements must not write any more.
_DISCONNECT = """\
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)
    AND application_name = %s
"""


class _InUse(StoreUnavailable):
    """Another session holds a table that a migration must lock."""


def parse(revision: str) -> tuple[int, int]:
    """Return the generation and the number of a revision: "0005" is (1, 5), "g2_0007" (2, 7).

    Raises `ConfigError` if it is none of this program.
    """
    found = _NAME.fullmatch(revision)
    if found is None:
        raise ConfigError(
            f"database.url: the database belongs to another program: its revision is {revision!r}"
        )
    return int(found[1] or 1), int(found[2])


GENERATION, NUMBER = parse(REVISION)


def check(revision: str | None) -> bool:
    """Return whether a database of this revision is newer, and can be served all the same.

    Raises `ConfigError` if it cannot be served.
    """
    if revision is None:
        return False
    generation, number = parse(revision)
    if generation > GENERATION:
        raise ConfigError(
            f"database.url: the database is of revision {revision}, generation {generation}, and "
            f"this version can serve generation {GENERATION}: use the version that migrated the "
            "database, or a newer one"
        )
    return number > NUMBER


async def upgrade(connection: Connection) -> None:
    """Bring the database that `connection` is open to up to `REVISION`, or leave a newer one alone.

    Raises `ConfigError` if the database's generation is newer than this program's,
    `StoreUnavailable` if it cannot be done now.
    """
    revision = await current(connection)
    if revision == REVISION:
        return
    log = structlog.get_logger()
    if check(revision):
        log.info("the database is newer, and compatible", revision=revision, ours=REVISION)
        return
    log.info("migrating the database", revision=REVISION)
    try:
        await asyncio.to_thread(_upgrade, connection.parameters, connection.backend_pid)
    except _InUse:
        log.warning("migration waits for a reader such as pg_dump")
        await asyncio.sleep(TABLE_PAUSE_S)
        raise


async def current(connection: Connection) -> str | None:
    """Return the database's revision, None before the first migration."""
    try:
        rows = await connection.execute("SELECT version_num FROM alembic_version")
    except StatementFailed as error:
        if error.sqlstate == "42P01":  # undefined_table
            return None
        raise StoreUnavailable(str(error)) from error
    return rows[0][0] if rows else None


def _upgrade(parameters: Parameters, own_pid: int) -> None:
    import alembic.command
    import alembic.config
    import alembic.runtime.migration
    import alembic.util
    import sqlalchemy
    import sqlalchemy.pool

    dsn = psycopg2.extensions.make_dsn(None, **{"connect_timeout": "5", **LIVENESS, **parameters})
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(dsn),
        poolclass=sqlalchemy.pool.NullPool,
    )
    config = alembic.config.Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    try:
        with engine.begin() as session:
            session.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            session.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
            context = alembic.runtime.migration.MigrationContext.configure(session)
            before = context.get_current_revision()
            if check(before):
                return  # a newer version has migrated it
            if before is not None:
                # Servers lock this first too, so there is no deadlock.
                session.exec_driver_sql(f"SET LOCAL lock_timeout = '{TABLE_TIMEOUT_S}s'")
                session.exec_driver_sql("LOCK TABLE head IN ACCESS EXCLUSIVE MODE")
                if parse(before)[0] < GENERATION:
                    name = parameters.get("application_name", APPLICATION_NAME)
                    session.exec_driver_sql(_DISCONNECT, (own_pid, name))
            config.attributes["connection"] = session
            alembic.command.upgrade(config, REVISION)
    except alembic.util.CommandError as error:
        raise ConfigError(
            f"database.url: the database belongs to another version of this program: {error}"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, psycopg2.Error) as error:
        message = f"migration failed: {' '.join(str(error).split())}"
        driver = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
        if isinstance(driver, psycopg2.errors.LockNotAvailable):
            raise _InUse(message) from error
        raise StoreUnavailable(message) from error
