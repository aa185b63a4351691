"""Drives tornado_status's store alone, without TLS and HTTP: full databases, several stores.

`python -m benchmarks.store_driver URL USERS WARMUP_S SECONDS IN_FLIGHT` checks in random users,
IN_FLIGHT at a time. It prints `{"event": "ready"}`, begins with the first line of its input, and
prints load.c's events, with the batches and the seconds that their commits took. Certificates for a
million users cannot be issued in reasonable time; a full store can be filled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence

from benchmarks.identities import ISSUER, device, email
from benchmarks.instruments import CommitSampler, Meter
from benchmarks.postgresql import PostgreSql, open_store
from benchmarks.programs import BenchmarkError, Child
from benchmarks.results import Numbers
from benchmarks.rig import warmup_s
from tornado_status.errors import StoreError
from tornado_status.model.records import CheckIn, Event

DRAIN_TIMEOUT_S = 10.0
SEED = 20_260_101  # the same users in every run

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


def fill(postgres: PostgreSql, name: str, users: int) -> None:
    """Make the database `name` with a row for each of `users` users, who have all checked in."""
    postgres.create(name)
    postgres.migrate(name)
    postgres.execute(name, _FILL, ISSUER, users)
    postgres.execute(name, "UPDATE head SET seq = %s", users)
    postgres.execute(name, "VACUUM ANALYZE")
    postgres.execute(name, "CHECKPOINT")


def touch(postgres: PostgreSql, name: str) -> None:
    """Change each page of the status once, as others did since the last checkpoint.

    The first change after a checkpoint writes an image of the whole page to the WAL, forty times
    the WAL of a check-in. In service that is once in five minutes for thousands of check-ins.
    """
    postgres.execute(name, _TOUCH)


def drive_stores(
    postgres: PostgreSql, names: Sequence[str], users: int, seconds: float, in_flight: int
) -> Numbers:
    """Drive one store in a process of its own for each of the databases `names`, at once.

    One database may be named several times. The numbers are totals of all stores; `batch` is the
    check-ins in a commit, `commit_ms` the time of one commit.
    """
    command = [sys.executable, "-m", "benchmarks.store_driver"]
    how = [users, warmup_s(seconds), seconds, in_flight]
    meter, sampler = Meter([], [postgres.pid]), CommitSampler(postgres)
    with contextlib.ExitStack() as stack:
        drivers = [
            stack.enter_context(Child([*command, postgres.url(name), *how])) for name in names
        ]
        for driver in drivers:
            driver.wait("ready")
        for driver in drivers:
            driver.go_on()
        for driver in drivers:
            driver.wait("measuring")
        with sampler, meter:
            drivers[0].wait("measured")
        results = [driver.wait("result") for driver in drivers]
    count, batches, commit_s, store_s = (
        float(sum(result[name] for result in results))
        for name in ("count", "batches", "commit_s", "cpu_s")
    )
    if not count:
        raise BenchmarkError("the store recorded nothing in the measured time")
    return {
        "rate": sum(result["count"] / result["seconds"] for result in results),
        "server_cpu_ms": store_s / count * 1000,
        "database_cpu_ms": (meter.database_s - sampler.cpu_s) / count * 1000,
        "batch": count / batches,
        "commit_ms": commit_s / batches * 1000,
        "commits_rate": batches / statistics.mean(result["seconds"] for result in results),
        **sampler.numbers(count),
    }


# ------------------------------------------------------------------------- the process that drives


async def main(url: str, users: int, warmup_s: float, seconds: float, in_flight: int) -> None:
    store = await open_store(url)
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    numbers = random.Random(SEED)  # noqa: S311 - to spread, not to hide
    recorded, stopped = 0, False

    def begin() -> None:
        number = numbers.randrange(users)
        store.submit(CheckIn(email(number), "127.0.0.1", 40000, *device(number)), done)

    def done(result: Event | StoreError) -> None:
        nonlocal recorded
        if isinstance(result, StoreError):
            if not failed.done():
                failed.set_exception(result)
            return
        recorded += 1
        if not stopped:
            begin()

    async def counts_after(seconds: float) -> dict[str, float]:
        """Return the counts after `seconds`. Raises the `StoreError` of a failed check-in."""
        await asyncio.wait({failed}, timeout=seconds)
        if failed.done():
            failed.result()
        commits = store.counters.commits
        return {
            "count": recorded,
            "seconds": time.monotonic(),
            "cpu_s": time.process_time(),
            "batches": sum(commits.counts),
            "commit_s": commits.sum,
        }

    say(event="ready")
    await asyncio.to_thread(sys.stdin.readline)
    for _ in range(in_flight):
        begin()
    before = await counts_after(warmup_s)
    say(event="measuring")
    after = await counts_after(seconds)
    say(event="measured")
    say(event="result", **{name: after[name] - before[name] for name in after})
    stopped = True
    await store.drain(DRAIN_TIMEOUT_S)
    await store.stop()


def say(**entry: object) -> None:
    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(given[0], int(given[1]), float(given[2]), float(given[3]), int(given[4])))
