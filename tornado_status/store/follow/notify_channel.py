"""The bell: LISTEN and NOTIFY between the servers on one database, and a poll in case it fails.

A ring says only that the log goes on; the log itself is read by the feed. Ringing is no part of
the commit: NOTIFY in its transaction would hold one lock over all databases of the PostgreSQL
until the disk has written, and would fail check-ins once a listener's queue is full. So the bell
has a connection of its own, rings behind the commits, many at once, and only where another server
follows. A ring that is lost is made good by the poll.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable

import structlog

from tornado_status.errors import StoreError, StoreUnavailable
from tornado_status.model.records import CommittedBatch
from tornado_status.store.database import Connection

POLL_S = 1.0  # how late an event of another server is at worst, when its ring was lost
PACE_S = 0.02  # between two rings: fifty a second are heard as one stream, and cost nothing
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0  # between attempts to connect

HEAD = "tornado_status_head"  # "the log goes on", with the newest number
FOLLOW = "tornado_status_follow"  # "somebody follows here": ring from now on
FOLLOWING = 0x7374_7265  # of pg_locks: held, shared, by every server on which somebody follows

_PREPARE = f"SET synchronous_commit = off; LISTEN {FOLLOW}"  # a ring needs no disk
_BEGIN = f"SELECT pg_advisory_lock_shared({FOLLOWING}); LISTEN {HEAD}; NOTIFY {FOLLOW}"
_END = f"UNLISTEN {HEAD}; SELECT pg_advisory_unlock_shared({FOLLOWING})"
_LOOK = f"""\
SELECT stream, seq, EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = 0 AND objid = {FOLLOWING} AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid <> pg_backend_pid())
FROM head"""  # noqa: S608


class NotifyChannel:
    """Tells the other servers of our commits, and us of theirs.

    `connect` opens a connection of the bell's own. `tell(stream, head)` is called with what is
    newest, `stream` None where only the number is known; several times for one, or for none.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        tell: Callable[[uuid.UUID | None, int], None],
    ) -> None:
        self._connect = connect
        self._tell = tell
        self._log = structlog.get_logger()
        self._wake = asyncio.Event()
        self._wanted = False
        self._others = False
        self._head = 0
        self._rung = 0

    def listen(self, wanted: bool) -> None:
        """From now on hear of other servers' commits, or hear of them no more."""
        self._wanted = wanted
        self._wake.set()

    def committed(self, batch: CommittedBatch) -> None:
        """Notify the other servers of a commit of this one, soon. Never waits."""
        self._head = batch.head
        if self._others:
            self._wake.set()

    async def run(self) -> None:
        """Connect, ring and listen, reconnect where needed; until cancelled."""
        delay = RETRY_MIN_S
        while True:
            try:
                connection = await self._connect()
                delay = RETRY_MIN_S
                ear = asyncio.create_task(self._hear(connection), name="bell's ear")
                try:
                    await self._serve(connection)
                finally:
                    ear.cancel()
                    await asyncio.gather(ear, return_exceptions=True)
                    await connection.close()
            except StoreError as error:
                # The writer says so aloud; without it there is nothing to hear of either.
                self._log.debug("bell lost", reason=str(error))
            self._others = False
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(delay * 2, RETRY_MAX_S)

    async def _serve(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        await connection.execute(_PREPARE)
        listening = False
        look_at = loop.time()
        while connection.usable:
            self._wake.clear()
            if self._wanted != listening:
                await connection.execute(_END if listening else _BEGIN)
                listening = not listening
                look_at = loop.time()
            if loop.time() >= look_at:
                log_id, head, self._others = await connection.fetch_one(_LOOK)
                look_at = loop.time() + POLL_S
                if listening:
                    self._tell(uuid.UUID(log_id), head)
            if self._others and self._head > self._rung:
                self._rung = self._head
                await connection.execute(f"NOTIFY {HEAD}, '{self._rung}'")
                await asyncio.sleep(PACE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(look_at):
                    await self._wake.wait()
        raise StoreUnavailable("the database closed the connection")

    async def _hear(self, connection: Connection) -> None:
        try:
            while True:
                backend_pid, channel, payload = await connection.notification()
                if backend_pid == connection.backend_pid:
                    continue
                if channel == FOLLOW:
                    self._others = True
                    self._rung = 0  # whoever comes new is told where we are
                    self._wake.set()
                elif payload.isascii() and payload.isdecimal():
                    # Anybody with an account may ring: a number is all that is taken from it.
                    self._tell(None, int(payload[:19]))
        except StoreUnavailable:
            self._wake.set()  # the other task sees that the connection is gone
