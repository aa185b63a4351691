"""The schema's migrations, with Alembic: plain SQL in order, under a lock.

Alembic and SQLAlchemy are imported only when there is something to do.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg2
import psycopg2.extensions
import structlog

from tornado_status.errors import ConfigError, StoreUnavailable
from tornado_status.store.database import Connection, StatementFailed
from tornado_status.store.hosts import Parameters

REVISION = "0005"  # the newest one in migrations/versions
LOCK = 0x7574_6174_7573  # any number, the same for every server: one migrates, the others wait
LOCK_TIMEOUT_S = 60

_SCRIPTS = Path(__file__).parent / "migrations"


async def upgrade(connection: Connection) -> None:
    """Bring the database that `connection` is open to up to `REVISION`.

    Raises `ConfigError` where the database is newer than this program, `StoreUnavailable` where
    it cannot be done now.
    """
    if await current(connection) == REVISION:
        return
    structlog.get_logger().info("migrating the database", revision=REVISION)
    await asyncio.to_thread(_upgrade, connection.parameters)


async def current(connection: Connection) -> str | None:
    """Return the database's revision, None before the first migration."""
    try:
        rows = await connection.execute("SELECT version_num FROM alembic_version")
    except StatementFailed as error:
        if error.sqlstate == "42P01":  # undefined_table
            return None
        raise StoreUnavailable(str(error)) from error
    return rows[0][0] if rows else None


def _upgrade(parameters: Parameters) -> None:
    import alembic.command
    import alembic.config
    import alembic.util
    import sqlalchemy
    import sqlalchemy.pool

    dsn = psycopg2.extensions.make_dsn(None, **{"connect_timeout": "5", **parameters})
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
            config.attributes["connection"] = session
            alembic.command.upgrade(config, REVISION)
    except alembic.util.CommandError as error:
        raise ConfigError(
            f"database.url: the database belongs to another version of this program: {error}"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, psycopg2.Error) as error:
        raise StoreUnavailable(f"migration failed: {' '.join(str(error).split())}") from error
