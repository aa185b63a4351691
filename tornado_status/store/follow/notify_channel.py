"""LISTEN and NOTIFY between the servers on one database, and a poll in case a notification is lost.

A notification carries only the new head; the feed reads the log itself. It is not part of the
commit. NOTIFY in its transaction would hold one lock over all databases of the PostgreSQL until the
disk has written. It would also fail check-ins once a session's queue is full. The channel therefore
has its own connection. It notifies after commits, once for many, and only if another server
follows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

import structlog

from tornado_status.errors import StoreError, StoreUnavailable
from tornado_status.model.records import CommittedBatch
from tornado_status.runtime.backoff import Backoff
from tornado_status.runtime.waiting import wait_set
from tornado_status.store.database import Connection

POLL_S = 1.0  # how late another server's event is at worst, if its notification was lost
PAUSE_S = 0.02  # between two notifications: followers see no delay, and fifty a second are cheap
RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0  # between attempts to connect

HEAD = "tornado_status_head"  # "the log goes on", with the newest number
FOLLOW = "tornado_status_follow"  # "a server follows here": notify from now on
FOLLOWING = 0x7374_7265  # of pg_locks: every server with a follower holds it, shared

_PREPARE = f"SET synchronous_commit = off; LISTEN {FOLLOW}"  # a notification needs no disk
_BEGIN = f"SELECT pg_advisory_lock_shared({FOLLOWING}); LISTEN {HEAD}; NOTIFY {FOLLOW}"
_END = f"UNLISTEN {HEAD}; SELECT pg_advisory_unlock_shared({FOLLOWING})"
_POLL = f"""\
SELECT log_id, seq, EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND classid = 0 AND objid = {FOLLOWING} AND objsubid = 1
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND pid <> pg_backend_pid())
FROM head"""  # noqa: S608


class NotifyChannel:
    """Notifies other servers of this one's commits, and this one of theirs.

    `connect` opens a connection for the channel alone. `on_notify(log_id, head)` gets the newest
    head, and None as the log id if only the head is known. It may be called without a change.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        on_notify: Callable[[uuid.UUID | None, int], None],
    ) -> None:
        self._connect = connect
        self._on_notify = on_notify
        self._log = structlog.get_logger()
        self._wake = asyncio.Event()
        self._wanted = False
        self._others = False
        self._head = 0
        self._notified = 0

    def listen(self, wanted: bool) -> None:
        """Begin or end to receive other servers' commits."""
        self._wanted = wanted
        self._wake.set()

    def committed(self, batch: CommittedBatch) -> None:
        """Notify the other servers of a commit of this one, soon. Never waits."""
        self._head = batch.head
        if self._others:
            self._wake.set()

    async def run(self) -> None:
        """Connect, notify and listen, reconnect if needed; until cancelled."""
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        while True:
            try:
                connection = await self._connect()
                backoff.reset()
                receiving = asyncio.create_task(self._receive(connection), name="notifications")
                try:
                    await self._serve(connection)
                finally:
                    receiving.cancel()
                    await asyncio.gather(receiving, return_exceptions=True)
                    await connection.close()
            except StoreError as error:
                # The writer warns of the same; without it there is nothing to receive either.
                self._log.debug("notify channel lost", reason=str(error))
            self._others = False
            await asyncio.sleep(backoff.next_s())

    async def _serve(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        await connection.execute(_PREPARE)
        listening = False
        poll_at = loop.time()
        while connection.usable:
            self._wake.clear()
            if self._wanted != listening:
                await connection.execute(_END if listening else _BEGIN)
                listening = not listening
                poll_at = loop.time()
            if loop.time() >= poll_at:
                log_id, head, self._others = await connection.fetch_one(_POLL)
                poll_at = loop.time() + POLL_S
                if listening:
                    self._on_notify(uuid.UUID(log_id), head)
            if self._others and self._head > self._notified:
                self._notified = self._head
                await connection.execute(f"NOTIFY {HEAD}, '{self._notified}'")
                await asyncio.sleep(PAUSE_S)
            await wait_set(self._wake, max(0.0, poll_at - loop.time()))
        raise StoreUnavailable("the database closed the connection")

    async def _receive(self, connection: Connection) -> None:
        try:
            while True:
                backend_pid, channel, payload = await connection.notification()
                if backend_pid == connection.backend_pid:
                    continue
                if channel == FOLLOW:
                    self._others = True
                    self._notified = 0  # the new follower learns the head
                    self._wake.set()
                elif payload.isascii() and payload.isdecimal():
                    # Every database user may notify: only a number is taken from the payload.
                    self._on_notify(None, int(payload[:19]))
        except StoreUnavailable:
            self._wake.set()  # the other task sees that the connection is gone
