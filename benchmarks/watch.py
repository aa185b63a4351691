"""Looks at PostgreSQL while it works: WAL that is written, and what the commits wait for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from types import TracebackType
from typing import Any

import psycopg2

from benchmarks.database import Postgres
from benchmarks.processes import cpu_s

SAMPLE_S = 0.02  # often enough for a share, seldom enough to cost little; its CPU is known

# The connections that write check-ins, by the statement that they run or have run.
_SAMPLE = """\
SELECT state, wait_event_type, wait_event FROM pg_stat_activity
WHERE query LIKE 'SELECT 1 / (stream = % FROM head FOR UPDATE; EXECUTE record_check_ins%'
"""
_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"

# Shares of the samples of all writing connections. `running`: on a processor, or waiting for one.
SHARES = ("idle", "running", "head_lock", "flush", "other")


class Watch:
    """Watches for the `with` block; afterwards the numbers are there.

    `wal_bytes` is all that was written to the WAL. `shares` is what the writing connections did, as
    shares of all samples, by `SHARES`. `cpu_s` is what the watching itself took of PostgreSQL's CPU
    time.
    """

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self.wal_bytes = 0
        self.cpu_s = 0.0
        self.samples: Counter[str] = Counter()

    @property
    def shares(self) -> dict[str, float]:
        total = self.samples.total()
        return {name: self.samples[name] / total if total else 0.0 for name in SHARES}

    def __enter__(self) -> Watch:
        self._connection = psycopg2.connect(self._postgres.url("postgres"))
        self._connection.autocommit = True
        self._pid = self._connection.info.backend_pid
        self._ended = threading.Event()
        self._wal = self._query(_WAL)[0][0]
        self._cpu_s = cpu_s([self._pid])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        with closing(self._connection):
            self.wal_bytes = int(self._query(_WAL)[0][0] - self._wal)
            self.cpu_s = cpu_s([self._pid]) - self._cpu_s

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.samples.update(classify(*row) for row in self._query(_SAMPLE))

    def _query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()


def classify(state: str | None, kind: str | None, event: str | None) -> str:
    """Return which of `SHARES` a row of pg_stat_activity belongs to (PostgreSQL, table 27.4)."""
    if state != "active":
        return "idle"
    if kind is None:
        return "running"
    if kind == "Lock":
        return "head_lock"  # the only row that two commits want
    if (event or "").lower() in ("walsync", "walwrite"):  # IO and LWLock, spelled in two ways
        return "flush"
    return "other"
