"""Drives tornado_status's store in this process, without TLS and HTTP.

`python -m benchmarks.store_driver URL USERS WARMUP_S SECONDS IN_FLIGHT` checks in random ones of
the users, so many at a time. It prints `{"event": "ready"}`, begins with the first line of its
input, and prints what load.c would print, with the batches and the seconds that their commits took.
Certificates for a million users cannot be issued in reasonable time; a full store can be filled.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time

from benchmarks.identities import device, email
from tornado_status.config import DatabaseSettings, LoggingSettings
from tornado_status.errors import StoreError
from tornado_status.model.records import CheckIn, Event
from tornado_status.observe import logging_setup
from tornado_status.store import Store

DRAIN_TIMEOUT_S = 10.0
SEED = 20_260_101  # the same users in every run


class Driver:
    """Keeps `in_flight` check-ins under way and counts those that were recorded."""

    def __init__(self, store: Store, users: int, in_flight: int) -> None:
        self._store = store
        self._users = users
        self._in_flight = in_flight
        self._random = random.Random(SEED)  # noqa: S311 - to spread, not to hide
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped = False
        self.recorded = 0

    def start(self) -> None:
        for _ in range(self._in_flight):
            self._next()

    def stop(self) -> None:
        """Begin no more check-ins."""
        self._stopped = True

    async def wait(self, seconds: float) -> None:
        """Let it run. Raises the `StoreError` that a check-in ended with, if any did."""
        await asyncio.wait({self._failed}, timeout=seconds)
        if self._failed.done():
            self._failed.result()

    def _next(self) -> None:
        number = self._random.randrange(self._users)
        self._store.submit(CheckIn(email(number), "127.0.0.1", 40000, *device(number)), self._done)

    def _done(self, result: Event | StoreError) -> None:
        if isinstance(result, StoreError):
            if not self._failed.done():
                self._failed.set_exception(result)
            return
        self.recorded += 1
        if not self._stopped:
            self._next()


async def main(url: str, users: int, warmup_s: float, seconds: float, in_flight: int) -> None:
    logging_setup.configure(LoggingSettings(level="warning"))
    store = Store(DatabaseSettings(url=url), enrolment_closed=False)
    await store.start()
    await store.wait_connected()
    _say({"event": "ready"})
    await asyncio.to_thread(sys.stdin.readline)
    driver = Driver(store, users, in_flight)
    driver.start()
    await driver.wait(warmup_s)
    _say({"event": "measuring"})
    begun, cpu, before = time.monotonic(), _cpu_s(), driver.recorded
    commits = store.counted.commits
    batches, commit_s = sum(commits.counts), commits.sum
    await driver.wait(seconds)
    elapsed, cpu = time.monotonic() - begun, _cpu_s() - cpu
    count = driver.recorded - before
    batches, commit_s = sum(commits.counts) - batches, commits.sum - commit_s
    _say({"event": "measured"})
    result = {"count": count, "seconds": elapsed, "cpu_s": cpu}
    _say({"event": "result", **result, "batches": batches, "commit_s": commit_s})
    driver.stop()
    await store.drain(DRAIN_TIMEOUT_S)
    await store.stop()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _say(entry: dict[str, object]) -> None:
    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(given[0], int(given[1]), float(given[2]), float(given[3]), int(given[4])))
