"""An honest population: clients that check in every second over connections that they keep."""

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

from tests.support.harness import LOOPBACK, PATIENCE_S, Server, client_context

REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\n\r\n"
ATTACK_S = float(os.environ.get("ABUSE_SECONDS", "10"))  # of each attacker; 60 for a thorough run
INTERVAL_S = 1.0
GRACE_S = 15.0  # for the last answers: a slow machine is no attack


class Population:
    """Clients of one asyncio process, each with its own certificate, in a thread of their own.

    A client that is cut off comes back, and the check-in counts as unanswered.
    """

    def __init__(self, server: Server, certs: Path, names: Sequence[str]) -> None:
        self.statuses: Counter[int | None] = Counter()  # None: no answer came
        self.not_ready: list[str] = []
        self._server = server
        self._contexts = [client_context(certs, name) for name in names]
        self._emails = {f"{name}@example.com" for name in names}
        self._met = 0
        self._changed = threading.Condition()
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
        """Send no more, and wait for the answers to what was sent."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive()

    def complaints(self) -> list[str]:
        """Stop, and return what the honest saw that they should not; empty if all was well."""
        self.stop()
        found = [
            f"{count} check-ins were answered {status}"
            for status, count in self.statuses.items()
            if status != 204
        ]
        if self.not_ready:
            found.append(f"not ready: {self.not_ready[0]}")
        present = {
            email
            for email, offline in self._server.rows("SELECT email, offline FROM user_status")
            if not offline
        }
        if absent := self._emails - present:
            found.append(f"{len(absent)} users are not present")
        return found

    async def _live(self) -> None:
        await asyncio.gather(*(self._check_in_on(context) for context in self._contexts))

    async def _check_in_on(self, context: ssl.SSLContext) -> None:
        first = True
        while not self._stopping.is_set():
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(GRACE_S):
                    reading, writing = await asyncio.open_connection(
                        LOOPBACK, self._server.port, ssl=context, server_hostname="localhost"
                    )
                try:
                    while not self._stopping.is_set():
                        began = time.monotonic()
                        await self._check_in(reading, writing)
                        if first:
                            first = False
                            with self._changed:
                                self._met += 1
                                self._changed.notify_all()
                        await self._rest(began + INTERVAL_S)
                finally:
                    writing.transport.abort()
            await asyncio.sleep(INTERVAL_S / 10)

    async def _rest(self, until: float) -> None:
        for _ in range(10):  # a stop does not wait for the next check-in
            if not self._stopping.is_set() and time.monotonic() < until:
                await asyncio.sleep(INTERVAL_S / 10)

    async def _check_in(self, reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        status = None
        try:
            writing.write(REQUEST)
            async with asyncio.timeout(GRACE_S):
                head = await reading.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
        finally:
            self.statuses[status] += 1
        if status != 204:  # its body is not read
            raise ConnectionResetError

    def _probe(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                answer = self._server.management("/readyz", GRACE_S)
            except OSError as error:
                self.not_ready.append(repr(error))
                continue
            if answer.status != 200:
                self.not_ready.append(answer.body.decode())


StartPopulation = Callable[[Server], Population]  # the fixture `start_population`
