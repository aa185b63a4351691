"""Drives tornado_status's store in this process, without TLS and HTTP, for the `users` workload.

`python -m benchmarks.store_driver URL USERS WARMUP_S SECONDS` checks in random ones of the users,
as many at a time as there are connections in `keep-alive`, and prints what load.c would print.
Certificates for a million users cannot be issued in reasonable time; a full store can be filled.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time

from benchmarks.identities import email
from benchmarks.workloads import CONNECTIONS
from tornado_status import logs
from tornado_status.checkin import CheckIn, Event
from tornado_status.config import Database, Logging
from tornado_status.errors import StoreError
from tornado_status.store import Store

DRAIN_TIMEOUT_S = 10.0
SEED = 20_260_101  # the same users in every run


class Driver:
    """Keeps `CONNECTIONS` check-ins under way and counts those that were recorded."""

    def __init__(self, store: Store, users: int) -> None:
        self._store = store
        self._users = users
        self._random = random.Random(SEED)  # noqa: S311 - to spread, not to hide
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped = False
        self.recorded = 0

    def start(self) -> None:
        for _ in range(CONNECTIONS):
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
        self._store.submit(
            CheckIn(email(number), "127.0.0.1", 40000, "CN=benchmark", f"{number:x}"), self._done
        )

    def _done(self, result: Event | StoreError) -> None:
        if isinstance(result, StoreError):
            if not self._failed.done():
                self._failed.set_exception(result)
            return
        self.recorded += 1
        if not self._stopped:
            self._next()


async def main(url: str, users: int, warmup_s: float, seconds: float) -> None:
    logs.configure(Logging(level="warning"))
    store = Store(Database(url=url), enrolment_closed=False, on_commit=lambda events, head: None)
    await store.start()
    await store.wait_connected()
    driver = Driver(store, users)
    driver.start()
    await driver.wait(warmup_s)
    _say({"event": "measuring"})
    begun, cpu, before = time.monotonic(), _cpu_s(), driver.recorded
    await driver.wait(seconds)
    elapsed, cpu = time.monotonic() - begun, _cpu_s() - cpu
    _say({"event": "measured"})
    count = driver.recorded - before
    _say({"event": "result", "count": count, "seconds": elapsed, "cpu_s": cpu})
    driver.stop()
    await store.drain(DRAIN_TIMEOUT_S)
    await store.stop()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _say(entry: dict[str, object]) -> None:
    print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
