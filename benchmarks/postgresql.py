"""The PostgreSQL of a run: one instance with fsync on, a fresh database for each start of a server.

It is the project's own embedded PostgreSQL.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.programs import BenchmarkError
from tornado_status.config.settings import DatabaseSettings, LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.store import Store
from tornado_status.store.embedded.postgres import EmbeddedPostgres

STOP_TIMEOUT_S = 60.0  # it writes a checkpoint
COMMITS = 200  # to measure what one costs on this disk

# Checkpoints between the measurements, not in one server's and not in another's.
_SETTINGS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}

_STATUS_TABLE = """\
CREATE TABLE user_status (
    email       text PRIMARY KEY,
    last_seen   timestamptz NOT NULL,
    client_ip   inet NOT NULL,
    client_port integer NOT NULL
) WITH (fillfactor = 70)
"""


class PostgreSql:
    """Runs with the `with` block; `settings` are PostgreSQL's, beside those of each run."""

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self._server = EmbeddedPostgres(directory, {**_SETTINGS, **(settings or {})})
        self._runner = asyncio.Runner()

    def __enter__(self) -> PostgreSql:
        logging_setup.configure(LoggingSettings(level="warning"))
        self._runner.run(self._server.start())
        self.user, self.socket_directory = (
            str(self._server.parameters[name]) for name in ("user", "host")
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._server.stop(STOP_TIMEOUT_S))
        self._runner.close()

    @property
    def pid(self) -> int:
        """The postmaster's."""
        if self._server.pid is None:
            raise BenchmarkError("PostgreSQL has ended")
        return self._server.pid

    def url(self, name: str) -> str:
        return f"postgresql://{self.user}@/{name}?host={self.socket_directory}"

    def execute(self, name: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in database `name`, committed; return its rows.

        Raises `BenchmarkError`.
        """
        try:
            with closing(psycopg2.connect(self.url(name))) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(sql, parameters or None)
                    return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            raise BenchmarkError(f"PostgreSQL: {' '.join(str(error).split())}") from error

    def create(self, name: str) -> None:
        """Make a new database, and write out what was before it."""
        self.execute("postgres", f"CREATE DATABASE {name}")
        self.execute("postgres", "CHECKPOINT")

    def make_status_table(self, name: str) -> None:
        """Make the one table of a peer that keeps no log."""
        self.execute(name, _STATUS_TABLE)

    def migrate(self, name: str) -> None:
        """Make tornado_status's own tables in a database."""

        async def migrate() -> None:
            await (await open_store(self.url(name))).stop()

        asyncio.run(migrate())

    def drop(self, name: str) -> None:
        self.execute("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def version(self) -> str:
        return str(self.execute("postgres", "SHOW server_version")[0][0])

    def commit_ms(self) -> float:
        """Return what one commit of one row takes on this machine's disk: the median of many."""
        times = []
        with closing(psycopg2.connect(self.url("postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE one (n integer)")
                for n in range(COMMITS):
                    begun = time.monotonic()
                    cursor.execute("INSERT INTO one VALUES (%s)", [n])
                    times.append(time.monotonic() - begun)
                cursor.execute("DROP TABLE one")
        return statistics.median(times) * 1000


async def open_store(url: str) -> Store:
    """Return tornado_status's store, connected, its tables made."""
    logging_setup.configure(LoggingSettings(level="warning"))
    store = Store(DatabaseSettings(url=url), enrolment_closed=False)
    await store.start()
    await store.wait_connected()
    return store
