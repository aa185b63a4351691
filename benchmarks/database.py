"""The PostgreSQL of a run: one instance with fsync on, a fresh database for each start of a peer.

`python -m benchmarks.database DIRECTORY` is that instance: the project's own embedded PostgreSQL,
until its input ends. `Postgres` runs it as a process of its own, so that its CPU time is not ours.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.errors import BenchmarkError
from benchmarks.places import ROOT
from tornado_status.config import LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.store.embedded.postgres import EmbeddedPostgres

STOP_TIMEOUT_S = 60.0
COMMITS = 200  # to tell what one costs on this disk

# Checkpoints between the measurements, not in one peer's and not in another's.
_SETTINGS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}

STATUS_SCHEMA = """\
CREATE TABLE user_status (
    email       text PRIMARY KEY,
    last_seen   timestamptz NOT NULL,
    client_ip   inet NOT NULL,
    client_port integer NOT NULL
) WITH (fillfactor = 70)
"""


class Postgres:
    """Runs with the `with` block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self.socket_directory = ""
        self.user = ""

    def __enter__(self) -> Postgres:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.database", str(self._directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours; we end it after the peers
        )
        if self._process.stdout is None:
            raise RuntimeError("no pipe")
        ready = self._process.stdout.readline().strip()
        if not ready:
            self._process.communicate()
            raise BenchmarkError("PostgreSQL does not start")
        self.user, self.socket_directory = ready.split(" ", 1)
        for name, value in _SETTINGS.items():
            self.execute("postgres", f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("postgres", "SELECT pg_reload_conf()")
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return
        process.stdin.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # PostgreSQL notices, and ends
            process.wait()
        process.stdout.close()

    @property
    def pid(self) -> int:
        """The postmaster's."""
        return int((self._directory / "postmaster.pid").read_text().split("\n", 1)[0])

    def url(self, name: str) -> str:
        return f"postgresql://{self.user}@/{name}?host={self.socket_directory}"

    def execute(self, name: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in database `name`, committed; return what it returns.

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

    def create(self, name: str, schema: str) -> None:
        """Make a new database with the tables of `schema`, and write out what was before it."""
        self.execute("postgres", f"CREATE DATABASE {name}")
        if schema:
            self.execute(name, schema)
        self.execute("postgres", "CHECKPOINT")

    def drop(self, name: str) -> None:
        self.execute("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def version(self) -> str:
        return str(self.execute("postgres", "SHOW server_version")[0][0])

    def commit_ms(self) -> float:
        """Return what one commit of one row takes on this machine's disk: the median of many."""
        self.create("commits", "CREATE TABLE one (n integer)")
        times = []
        with closing(psycopg2.connect(self.url("commits"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for n in range(COMMITS):
                    begun = time.monotonic()
                    cursor.execute("INSERT INTO one VALUES (%s)", [n])
                    times.append(time.monotonic() - begun)
        self.drop("commits")
        return statistics.median(times) * 1000


async def main(directory: Path) -> None:
    logging_setup.configure(LoggingSettings(level="warning"))
    server = EmbeddedPostgres(directory)
    await server.start()
    print(server.parameters["user"], server.parameters["host"], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
