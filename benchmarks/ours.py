"""What is measured of tornado_status alone: many users, and two servers on one port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from benchmarks.database import Postgres
from benchmarks.errors import BenchmarkError
from benchmarks.identities import ISSUER
from benchmarks.places import ROOT
from benchmarks.processes import Meter
from benchmarks.watch import Watch
from benchmarks.workloads import CONNECTIONS, Numbers, warmup_s
from tornado_status.config import DatabaseSettings, LoggingSettings
from tornado_status.observe import logging_setup
from tornado_status.store import Store

USERS = (1_000, 1_000_000)
AFTER_CHECKPOINT = "right after a checkpoint"
SERVERS = (1, 2)
STOP_TIMEOUT_S = 20.0  # to commit what is under way

# With the certificate that the driver checks in with: a change of it costs more than a check-in.
_FILL = """\
INSERT INTO user_status
    (email, seq, last_seen, client_ip, client_port, issuer, serial, first_seen)
SELECT 'user' || lpad(n::text, 7, '0') || '@example.com', n + 1, now(), '127.0.0.1', 40000,
       %s, lpad(to_hex(n), 40, '0'), now()
FROM generate_series(0, %s - 1) AS n
"""

# One row of each page: a second copy of every row would not fit into the pages.
_TOUCH = """\
UPDATE user_status SET seq = seq WHERE ctid = ANY (ARRAY(
    SELECT DISTINCT ON ((ctid::text::point)[0]) ctid FROM user_status
    ORDER BY (ctid::text::point)[0], ctid
))
"""


def fill(postgres: Postgres, name: str, users: int) -> None:
    """Make the database `name` with a row for each of `users` users, who have all checked in."""
    postgres.create(name, "")
    asyncio.run(_migrate(postgres.url(name)))
    postgres.execute(name, _FILL, ISSUER, users)
    postgres.execute(name, "UPDATE head SET seq = %s", users)
    postgres.execute(name, "VACUUM ANALYZE")
    postgres.execute(name, "CHECKPOINT")


def touch(postgres: Postgres, name: str) -> None:
    """Change each page of the status once, as others did since the last checkpoint.

    The first change after a checkpoint writes an image of the whole page to the WAL: forty times
    what a check-in writes, and in service once in five minutes for thousands of check-ins.
    """
    postgres.execute(name, _TOUCH)


def drive_store(postgres: Postgres, name: str, users: int, seconds: float) -> Numbers:
    """Check in random users at full speed, directly through the store."""
    watch = Watch(postgres)
    numbers = drive_stores(postgres, [name], users, seconds, CONNECTIONS, watch)
    count = numbers["rate"] * seconds
    return {
        **numbers,
        "database_cpu_ms": numbers["database_cpu_ms"] - watch.cpu_s / count * 1000,
        "wal_bytes": watch.wal_bytes / count,
    }


def drive_stores(
    postgres: Postgres,
    names: Sequence[str],
    users: int,
    seconds: float,
    in_flight: int,
    beside: AbstractContextManager[object] | None = None,
) -> Numbers:
    """Drive one store in a process of its own for each of the databases `names`, at once.

    One database may be named several times. `beside` is entered for the measured time. Numbers are
    of all together; `batch` is the check-ins in a commit, `commit_ms` the time of one.
    """
    drivers: list[_Driver] = []
    try:
        drivers += [
            _Driver(postgres.url(name), users, warmup_s(seconds), seconds, in_flight)
            for name in names
        ]
        for driver in drivers:
            driver.wait("ready")
        for driver in drivers:
            driver.begin()
        for driver in drivers:
            driver.wait("measuring")
        meter = Meter([], [postgres.pid])
        with beside or contextlib.nullcontext():
            meter.start()
            drivers[0].wait("measured")
            meter.stop()
        for driver in drivers[1:]:
            driver.wait("measured")
        results = [driver.wait("result") for driver in drivers]
        for driver in drivers:
            driver.wait_end()
    finally:
        for driver in drivers:
            driver.close()
    count, batches = (sum(result[name] for result in results) for name in ("count", "batches"))
    if not count:
        raise BenchmarkError("the store recorded nothing in the measured time")
    measured_s = statistics.mean(result["seconds"] for result in results)
    return {
        "rate": sum(result["count"] / result["seconds"] for result in results),
        "server_cpu_ms": sum(result["cpu_s"] for result in results) / count * 1000,
        "database_cpu_ms": meter.database_s / count * 1000,
        "batch": count / batches,
        "commit_ms": sum(result["commit_s"] for result in results) / batches * 1000,
        "commits_rate": batches / measured_s,
    }


class _Driver:
    """A process of `store_driver`. Every wait ends when it does."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.store_driver", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def wait(self, event: str) -> dict[str, Any]:
        for line in self._process.stdout or ():
            entry: dict[str, Any] = json.loads(line)
            if entry["event"] == event:
                return entry
        raise BenchmarkError("the store driver ended without a result")

    def wait_end(self) -> None:
        self._process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


async def _migrate(url: str) -> None:
    logging_setup.configure(LoggingSettings(level="warning"))
    store = Store(DatabaseSettings(url=url), enrolment_closed=False)
    await store.start()
    await store.wait_connected()
    await store.stop()
