"""The store: what the rest of the house sees of the database.

Puts together the embedded PostgreSQL (where configured), the migrations, the group commit and the
reading queries, and decides how a connection is prepared for writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence

import structlog

from tornado_status import presence
from tornado_status.checkin import (
    CheckIn,
    Event,
    EventPage,
    HistoryEntry,
    HistoryPage,
    StatusRecord,
    UserPage,
)
from tornado_status.config import EMBEDDED, Database, History, Presence
from tornado_status.errors import StoreError, StoreUnavailable
from tornado_status.measure import CheckIns
from tornado_status.store import migrate, queries
from tornado_status.store.alerts import AlertJournal
from tornado_status.store.commit import PREPARE_RECORD, Done, GroupCommit
from tornado_status.store.database import Connection, Parameters, Pool, StatementFailed, parse_url
from tornado_status.store.embedded import EmbeddedPostgres
from tornado_status.store.sweep import PREPARE_SWEEP, Sweeper

READERS = 4  # connections for reading: a page of events each, beside the writer
READ_WAIT_S = 3.0  # how long a read waits for one of them

_PRESENCE, _HISTORY = Presence(), History()  # as shipped

# PostgreSQL gives up a little before we do: then it is known that nothing was recorded.
_SERVER_TIMEOUT_SHARE = 0.8

_SESSION = """\
SET standard_conforming_strings = on;
SET default_transaction_isolation = 'read committed';
SET statement_timeout = {timeout_ms};
SET idle_in_transaction_session_timeout = {timeout_ms};
-- A batch touches up to a few hundred users by key. Plans made while the table was small must not
-- outlive its growth.
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
-- Those make a plan look dear, and PostgreSQL would compile it: 400 ms for a statement of 1 ms.
SET jit = off;
"""

# A restored or promoted database may hand out numbers again: a new stream begins. The timeline is
# that of the WAL being written; the control file learns of a promotion only at a checkpoint.
_RENEW_STREAM = """\
SELECT seq FROM head FOR UPDATE;
WITH here AS (
    SELECT system_identifier,
           ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int AS timeline_id
    FROM pg_control_system()
)
UPDATE head SET system_identifier = here.system_identifier, timeline_id = here.timeline_id,
    stream = CASE WHEN head.system_identifier IS NULL THEN stream ELSE gen_random_uuid() END
FROM here
WHERE head.system_identifier IS DISTINCT FROM here.system_identifier
   OR head.timeline_id IS DISTINCT FROM here.timeline_id
RETURNING stream
"""


class Store:
    """Records check-ins and answers questions about them.

    `on_commit(events, head)` is called for every committed batch, in order, in the same turn of
    the loop in which its check-ins are answered.
    """

    def __init__(
        self,
        settings: Database,
        *,
        enrolment_closed: bool,
        on_commit: Callable[[Sequence[Event], int], None],
        when: Presence = _PRESENCE,
        history: History = _HISTORY,
    ) -> None:
        self._settings = settings
        self._interval_s = when.interval_s
        self._log = structlog.get_logger()
        self._embedded: EmbeddedPostgres | None = None
        self._parameters: Parameters = {}
        if settings.url == EMBEDDED:
            self._embedded = EmbeddedPostgres(settings.data_dir)
        else:
            self._parameters = parse_url(settings.url)
        self._commit = GroupCommit(
            self._connect_writer,
            on_commit,
            enrolment_closed=enrolment_closed,
            max_pending=settings.max_pending,
            commit_timeout_s=settings.commit_timeout_s,
        )
        self._pool = Pool(READERS, settings.connect_timeout_s, READ_WAIT_S)
        self.sweeper = Sweeper(
            self._commit,
            self._pool,
            offline_after_s=when.offline_after_s,
            every_s=presence.sweep_every_s(when.interval_s),
            retention_s=presence.retention_s(history.retention, when.offline_after_s),
        )
        self._writer: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self.alerts = AlertJournal(self._pool)

    async def start(self) -> None:
        """Start PostgreSQL, where it is embedded, and the writer, which connects by itself.

        Raises `ConfigError` where the embedded PostgreSQL cannot be started.
        """
        if self._embedded is not None:
            await self._embedded.start()
            self._parameters = self._embedded.parameters
        self._writer = asyncio.create_task(self._commit.run(), name="store writer")
        self._sweeping = asyncio.create_task(self.sweeper.run(), name="sweep")

    async def wait_connected(self) -> None:
        """Return once check-ins can be recorded. Raises `ConfigError` where they never will."""
        connected = asyncio.ensure_future(self._commit.connected.wait())
        writer = self._running()
        await asyncio.wait({connected, writer}, return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            connected.cancel()
            writer.result()

    async def wait_failed(self) -> None:
        """Return never, but raise what nobody expected, should a part of the store end with it."""
        parts = {self._running()} | ({self._sweeping} if self._sweeping is not None else set())
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()

    @property
    def problem(self) -> str:
        """Why check-ins cannot be recorded now; "" when they can."""
        return self._commit.problem

    @property
    def head(self) -> int:
        """The largest number known to be committed."""
        return self._commit.head

    @property
    def stream(self) -> uuid.UUID:
        """The run of numbers that `head` belongs to."""
        return self._commit.stream

    @property
    def pending(self) -> int:
        """Check-ins that wait for a commit to begin."""
        return self._commit.pending

    @property
    def counted(self) -> CheckIns:
        """What became of check-ins; who answers them adds those that were refused."""
        return self._commit.counted

    def submit(self, check_in: CheckIn, done: Done) -> None:
        """Queue a check-in; see `GroupCommit.submit`."""
        self._commit.submit(check_in, done)

    async def record(self, check_in: CheckIn) -> Event:
        """Commit a check-in and return its event.

        Raises `StoreUnavailable` where it is not known to be recorded, `UserUnknown` where
        enrolment is closed and the e-mail not enrolled.
        """
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

        def done(result: Event | StoreError) -> None:
            if future.cancelled():
                return  # the request is gone; its check-in is recorded all the same
            if isinstance(result, StoreError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.submit(check_in, done)
        return await future

    async def user(self, email: str) -> StatusRecord | None:
        """See `queries.user`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.user(connection, email, self._interval_s)

    async def users(self, after: str, limit: int) -> UserPage:
        """See `queries.users`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.users(connection, after, limit, self._interval_s)

    async def history(self, email: str, before: int | None, limit: int) -> HistoryPage:
        """See `queries.history`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.history(connection, email, before, limit)

    async def events(self, after: int, limit: int) -> EventPage:
        """See `queries.events`. Raises `HistoryGone` and `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.events(connection, after, limit)

    async def log(self, after: int | None, limit: int) -> tuple[int, list[HistoryEntry]]:
        """See `queries.log`. Raises `HistoryGone` and `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.log(connection, after, limit)

    async def announcers(self) -> tuple[uuid.UUID, list[str]]:
        """See `queries.announcers`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.announcers(connection)

    async def publish_announcers(self, entries: Sequence[tuple[str, str]]) -> None:
        """See `queries.publish`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                await queries.publish(connection, entries)

    async def drain(self, timeout_s: float) -> None:
        """Wait until what was submitted is committed and answered, at most `timeout_s`."""
        await self._commit.drain(timeout_s)

    async def stop(self) -> None:
        """Close the connections, and stop an embedded PostgreSQL. See `drain`."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        if self._writer is not None:
            self._commit.stop()
            _, late = await asyncio.wait({self._writer}, timeout=self._settings.commit_timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._pool.close()
        if self._embedded is not None:
            await self._embedded.stop()

    def _running(self) -> asyncio.Task[None]:
        if self._writer is None:
            raise RuntimeError("the store is not started")
        return self._writer

    async def _connect_writer(self) -> Connection:
        connection = await Connection.open(self._parameters, self._settings.connect_timeout_s)
        try:
            await migrate.upgrade(connection)
            await self._prepare(connection)
        except StatementFailed as error:
            await connection.close()
            raise StoreUnavailable(f"the database refuses: {error}") from error
        except BaseException:
            await connection.close()
            raise
        await self._pool.point_to(connection.parameters)
        return connection

    async def _prepare(self, connection: Connection) -> None:
        timeout_ms = int(self._settings.commit_timeout_s * 1000 * _SERVER_TIMEOUT_SHARE)
        await connection.execute(_SESSION.format(timeout_ms=timeout_ms))
        (synchronous_commit,) = await connection.fetch_one("SHOW synchronous_commit")
        if synchronous_commit == "off":
            # A 204 promises that a crash loses nothing.
            self._log.warning("synchronous_commit is off in the database; on for check-ins")
            await connection.execute("SET synchronous_commit = on")
        renewed = await connection.execute(_RENEW_STREAM)
        if renewed:
            self._log.info("stream of numbers", stream=renewed[0][0])
        await connection.execute(PREPARE_RECORD)
        await connection.execute(PREPARE_SWEEP)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except StatementFailed as error:
        raise StoreUnavailable(f"the database refuses: {error}") from error
