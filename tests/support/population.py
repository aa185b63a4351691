"""An honest population: clients that check in every second, most over connections that they keep.

Half way through an attack some of it stop. The server must declare them offline, and no other user.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, client_context
from tornado_status.config.settings import ServerSettings

REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n"
ATTACK_S = float(os.environ.get("ABUSE_SECONDS", "5"))  # of each attacker; 60 for a thorough run
INTERVAL_S = 1.0
GRACE_S = 15.0  # for the last answers: a slow machine is no attack
OFFLINE_AFTER_S = 8.0  # an honest client may wait so long for an answer
LEAVERS = 5  # of the population, half way through the attack
NEWCOMERS = 20  # of the population connect anew for each check-in

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def as_shipped(**server: Any) -> dict[str, Any]:
    """Return settings with the shipped limits, which `running_server` raises, but for `server`.

    Users go offline soon enough for a test.
    """
    return {
        "server": ServerSettings(**{"host": LOOPBACK, "port": 0, **server}).model_dump(),
        "presence": {"interval_s": INTERVAL_S, "offline_after_s": OFFLINE_AFTER_S},
    }


class Population:
    """Clients of one asyncio process, each with its own certificate, in a thread of their own.

    A client that is cut off, or cannot connect, comes back: its check-in counts as unanswered.
    """

    def __init__(self, server: Server, certs: Path, names: Sequence[str]) -> None:
        self.statuses: Counter[int | None] = Counter()  # of check-ins; None: no answer came
        self.not_ready: list[str] = []
        self._server = server
        self._contexts = [client_context(certs, name) for name in names]
        self._emails = [f"{name}@example.com" for name in names]
        self._leavers = set(self._emails[-LEAVERS:])
        self._met = 0
        self._changed = threading.Condition()
        self._unserved = threading.Event()
        self._leaving = threading.Event()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=lambda: asyncio.run(self._live())),
            threading.Thread(target=self._probe),
        ]

    def __enter__(self) -> Population:
        for thread in self._threads:
            thread.start()
        try:
            with self._changed:
                assert self._changed.wait_for(lambda: self._met == len(self._emails), PATIENCE_S)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait for the answers to what was sent unless some will not come."""
        self._stopping.set()
        if self._unserved.is_set():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._clients.cancel)
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive()

    def complaints(self) -> list[str]:
        """Return what the honest saw during an attack that they should not; empty if all was well.

        Call it while the attack goes on. Watches for `ATTACK_S` and until those who left are
        offline, or until an honest client is not served. Stops the population.
        """
        self._unserved.wait(ATTACK_S / 2)
        self._leaving.set()
        self._unserved.wait(ATTACK_S / 2)
        until = time.monotonic() + OFFLINE_AFTER_S + GRACE_S
        while self._offline() != self._leavers and time.monotonic() < until:
            if self._unserved.wait(INTERVAL_S / 10):
                break
        offline = self._offline()
        self.stop()
        found = [
            f"{count} check-ins were answered {status}"
            for status, count in self.statuses.items()
            if status != 204
        ]
        if self.not_ready:
            found.append(f"not ready: {self.not_ready[0]}")
        if wrong := offline - self._leavers:
            found.append(f"{len(wrong)} users who were there were declared offline")
        if self._unserved.is_set():
            return found  # ended early
        if missed := self._leavers - offline:
            found.append(f"{len(missed)} users who had left were not declared offline")
        if (recorded := self._recorded()) != self.statuses[204]:
            found.append(f"{recorded} check-ins in the log, {self.statuses[204]} acknowledged")
        return found

    def _offline(self) -> set[str]:
        """Return who was declared offline so far."""
        sql = "SELECT DISTINCT email FROM check_in WHERE event = 'offline' AND email = ANY(%s)"
        return {email for [email] in self._server.rows(sql, self._emails)}

    def _recorded(self) -> int:
        sql = "SELECT count(*) FROM check_in WHERE event <> 'offline' AND email = ANY(%s)"
        [(count,)] = self._server.rows(sql, self._emails)
        return int(count)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clients = asyncio.gather(*(self._live_as(n) for n in range(len(self._emails))))
        with contextlib.suppress(asyncio.CancelledError):
            await self._clients
        await asyncio.sleep(INTERVAL_S / 10)  # asyncio closes their sockets meanwhile

    async def _live_as(self, number: int) -> None:
        leaves = self._emails[number] in self._leavers
        streams: Streams | None = None
        met = False
        try:
            while not self._stopping.is_set() and not (leaves and self._leaving.is_set()):
                began = time.monotonic()
                status = None
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(GRACE_S):
                        if streams is None:
                            streams = await self._connect(self._contexts[number])
                        status = await _check_in(*streams)
                self.statuses[status] += 1
                if status != 204:
                    self._unserved.set()
                elif not met:
                    met = True
                    self._count_met()
                if streams is not None and (status != 204 or number < NEWCOMERS):
                    streams[1].transport.abort()
                    streams = None
                for _ in range(10):  # a stop does not wait for the next check-in
                    if not self._stopping.is_set() and time.monotonic() < began + INTERVAL_S:
                        await asyncio.sleep(INTERVAL_S / 10)
        finally:
            if streams is not None:
                streams[1].transport.abort()

    async def _connect(self, context: ssl.SSLContext) -> Streams:
        return await asyncio.open_connection(
            LOOPBACK, self._server.port, ssl=context, server_hostname="localhost"
        )

    def _count_met(self) -> None:
        with self._changed:
            self._met += 1
            self._changed.notify_all()

    def _probe(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                answer = self._server.management("/readyz", GRACE_S)
            except OSError as error:
                self.not_ready.append(repr(error))
                continue
            if answer.status != 200:
                self.not_ready.append(answer.body.decode())


async def _check_in(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> int:
    """Return the status of the answer. Its body, if it has one, is not read."""
    writing.write(REQUEST)
    head = await reading.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


StartPopulation = Callable[[Server], Population]  # the fixture `start_population`
