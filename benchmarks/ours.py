"""What is measured of tornado_status alone: many users, and two servers on one port."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from benchmarks.database import Postgres
from benchmarks.errors import BenchmarkError
from benchmarks.places import ROOT
from benchmarks.processes import Meter
from benchmarks.workloads import Numbers, warmup_s
from tornado_status import logs
from tornado_status.config import Database, Logging
from tornado_status.store import Store

USERS = (1_000, 1_000_000)
SERVERS = (1, 2)

_FILL = """\
INSERT INTO user_status (email, seq, last_seen, client_ip, client_port)
SELECT 'user' || lpad(n::text, 7, '0') || '@example.com', n + 1, now(), '127.0.0.1', 40000
FROM generate_series(0, %s - 1) AS n
"""


def fill(postgres: Postgres, name: str, users: int) -> None:
    """Make the database `name` with a row for each of `users` users, who have all checked in."""
    postgres.create(name, "")
    asyncio.run(_migrate(postgres.url(name)))
    postgres.execute(name, _FILL, users)
    postgres.execute(name, "UPDATE head SET seq = %s", users)
    postgres.execute(name, "VACUUM ANALYZE")
    postgres.execute(name, "CHECKPOINT")


def drive_store(postgres: Postgres, name: str, users: int, seconds: float) -> Numbers:
    """Check in random users at full speed, directly through the store."""
    meter = Meter([], [postgres.pid])
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "benchmarks.store_driver"),
            *(postgres.url(name), str(users), str(warmup_s(seconds)), str(seconds)),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = {}
    try:
        for line in process.stdout or ():
            entry = json.loads(line)
            if entry["event"] == "measuring":
                meter.start()
            elif entry["event"] == "measured":
                meter.stop()
            else:
                result = entry
        process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if not result:
        raise BenchmarkError("the store driver ended without a result")
    return {
        "rate": result["count"] / result["seconds"],
        "server_cpu_ms": result["cpu_s"] / result["count"] * 1000,
        "database_cpu_ms": meter.database_s / result["count"] * 1000,
    }


async def _migrate(url: str) -> None:
    logs.configure(Logging(level="warning"))
    store = Store(Database(url=url), enrolment_closed=False, on_commit=lambda events, head: None)
    await store.start()
    await store.wait_connected()
    await store.stop()
