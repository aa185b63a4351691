"""The store: all that other packages see of the database.

Puts together the embedded PostgreSQL (if configured), the migrations, the group commit and the
queries, and decides how a connection is prepared for writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import structlog
from prometheus_client.core import Metric

from tornado_status.config.settings import (
    EMBEDDED,
    DatabaseSettings,
    HistorySettings,
    PresenceSettings,
)
from tornado_status.errors import ConfigError, StoreError, StoreUnavailable
from tornado_status.model import presence
from tornado_status.model.records import (
    CheckIn,
    CommittedBatch,
    Event,
    EventPage,
    GroupKey,
    HistoryEnd,
    HistoryEntry,
    HistoryPage,
    LogSlice,
    LogSpan,
    StatusRecord,
    UserPage,
)
from tornado_status.observe import metrics
from tornado_status.observe.counters import Batch, CheckIns
from tornado_status.pki.crl import CRLMark
from tornado_status.store import batch_statements, enrolment, group_keys, migrate, queries
from tornado_status.store.alert_queue import AlertQueue
from tornado_status.store.database import Connection, Pool, StatementFailed, parse_url
from tornado_status.store.embedded.postgres import STOP_TIMEOUT_S, EmbeddedPostgres
from tornado_status.store.failover import Parameters, shown
from tornado_status.store.follow.feed import Feed
from tornado_status.store.follow.notify_channel import NotifyChannel
from tornado_status.store.group_commit import GroupCommit, Subscriber
from tornado_status.store.log_id import database_identity
from tornado_status.store.presence_sweep import (
    PREPARE_MARK,
    PREPARE_SWEEP,
    WRITE_SETTINGS,
    PresenceSweep,
)
from tornado_status.store.turns import Done
from tornado_status.store.user_counts import UserCounts

# Connections to the database, beside the writer's and the notify channel's. Requests of clients
# never take one that presence or alerts need.
READERS = 6  # half for requests, half for followers
SWEEPERS = 1  # the presence sweep
ALERTERS = 2  # the workers of alerts, which take turns
KEEPERS = 1  # commands' entries, user counts, announcer and group keys, CRL marks
READ_WAIT_S = 3.0  # how long one waits for a connection of its kind

_PRESENCE, _HISTORY = PresenceSettings(), HistorySettings()  # as shipped

# PostgreSQL times out a little before we do, and then says that nothing was recorded.
_SERVER_TIMEOUT_SHARE = 0.8

_SESSION = """\
SET standard_conforming_strings = on;
SET default_transaction_isolation = 'read committed';
SET statement_timeout = {timeout_ms};
SET idle_in_transaction_session_timeout = {timeout_ms};
-- Warnings must come through, and nothing below them: see Connection.execute.
SET client_min_messages = warning;
-- A batch touches up to a few hundred users by key. Plans made while the table was small must not
-- outlive its growth.
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
-- Those raise the cost of a plan, and PostgreSQL would compile it: 400 ms for a statement of 1 ms.
SET jit = off;
"""

# 204 depends on these: with one of them off, a crash of PostgreSQL or of its machine loses
# acknowledged check-ins. Read in this session, because a role may have settings of its own.
_DURABILITY = """\
SELECT name FROM pg_settings
WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
ORDER BY name
"""

# For this session a reload of PostgreSQL's configuration no longer changes it.
_PIN_DURABILITY = """\
SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), false)
"""

# A restored or promoted database may use sequence numbers again. A new log begins if the system
# identifier or the timeline has changed, or is no longer available. It also begins if the head is
# below the one that this server knows: another copy of the data was put in its place.
_RENEW_LOG = """\
SELECT seq FROM head FOR UPDATE;
WITH here (system_identifier, timeline_id, log_id, seq) AS (
    VALUES (%s::bigint, %s::integer, %s::uuid, %s::bigint)
), changed AS MATERIALIZED (
    SELECT here.system_identifier, here.timeline_id, head.log_id AS parent, head.seq AS fork,
           CASE
               WHEN head.system_identifier <> here.system_identifier
                   OR head.timeline_id <> here.timeline_id
                   OR head.system_identifier IS NOT NULL AND here.system_identifier IS NULL
                   OR head.timeline_id IS NOT NULL AND here.timeline_id IS NULL
                   OR head.log_id = here.log_id AND head.seq < here.seq
               THEN gen_random_uuid() ELSE head.log_id END AS log_id
    FROM head, here
    WHERE head.system_identifier IS DISTINCT FROM here.system_identifier
       OR head.timeline_id IS DISTINCT FROM here.timeline_id
       OR head.log_id = here.log_id AND head.seq < here.seq
), step AS (
    INSERT INTO log_step (log_id, parent, fork, at)
    SELECT log_id, parent, fork, clock_timestamp() FROM changed WHERE log_id <> parent
)
UPDATE head SET system_identifier = changed.system_identifier, timeline_id = changed.timeline_id,
    log_id = changed.log_id
FROM changed
RETURNING head.log_id, nullif(changed.parent, head.log_id), changed.fork
"""


class Sealing(Protocol):
    """`announce.group_key_keeper.GroupKeyKeeper`."""

    readers: bytes

    def use(self, keys: Sequence[GroupKey]) -> None: ...


class Store:
    """Records check-ins and answers questions about them.

    It hands every committed batch to `subscribers` in their order, then to its own feed and notify
    channel: see `GroupCommit`, also for `on_batch`. `check_crls` gets the newest CRL of
    each CA before the store records or reads a check-in. It may raise `ConfigError`.
    `sealing` gets the keys of sealed announcements before there is something to announce.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        enrolment_closed: bool,
        subscribers: Sequence[Subscriber] = (),
        when: PresenceSettings = _PRESENCE,
        history: HistorySettings = _HISTORY,
        on_batch: Callable[[Batch], None] | None = None,
        check_crls: Callable[[Sequence[CRLMark]], None] | None = None,
        sealing: Sealing | None = None,
    ) -> None:
        self._settings = settings
        self._check_crls = check_crls
        self._sealing = sealing
        self._when = when
        self._interval_s = when.interval_s
        self._log = structlog.get_logger()
        self._embedded: EmbeddedPostgres | None = None
        self._parameters: Parameters = {}
        if settings.url == EMBEDDED:
            self._embedded = EmbeddedPostgres(settings.data_dir)
        else:
            self._parameters = parse_url(settings.url)
        self._notify_channel = NotifyChannel(
            self._connect_notify_channel, lambda log_id, head: self.feed.notify(log_id, head)
        )
        self.feed = Feed(self, self._notify_channel.listen)
        self._commit = GroupCommit(
            self._connect_writer,
            (*subscribers, self.feed.committed, self._notify_channel.committed),
            enrolment_closed=enrolment_closed,
            commit_timeout_s=settings.commit_timeout_s,
            on_batch=on_batch,
        )
        self._pools: list[Pool] = []
        self._pool = self._make_pool(READERS)
        self._keepers = self._make_pool(KEEPERS)
        self.sweeper = PresenceSweep(
            self._commit,
            self._make_pool(SWEEPERS),
            when=when,
            every_s=presence.sweep_every_s(when.interval_s),
            retention_s=presence.retention_s(history.retention, when.offline_after_s),
        )
        self.user_counts = UserCounts(self._commit, self._keepers, when.interval_s)
        self._outbox = enrolment.Outbox(self._commit, self._keepers)
        self._writer: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._following: list[asyncio.Task[None]] = []
        self._connected_before = False
        self._not_durable: list[str] = []
        self._identity_warnings: list[str] = []
        self.alerts = AlertQueue(self._make_pool(ALERTERS))

    async def start(self) -> None:
        """Start the embedded PostgreSQL, if configured, and the writer, which connects by itself.

        Raises `ConfigError` if the embedded PostgreSQL cannot be started.
        """
        if self._embedded is not None:
            await self._embedded.start()
            self._parameters = self._embedded.parameters
        self._writer = asyncio.create_task(self._commit.run(), name="store writer")
        self._sweeping = asyncio.create_task(self.sweeper.run(), name="sweep")
        self._following = [
            asyncio.create_task(self._notify_channel.run(), name="store notify channel"),
            asyncio.create_task(self.feed.run(), name="store feed"),
            asyncio.create_task(self.user_counts.run(), name="user counts"),
            asyncio.create_task(self._outbox.run(), name="store outbox"),
        ]

    async def wait_connected(self) -> None:
        """Return once check-ins can be recorded. Raises `ConfigError` if they never can be."""
        connected = asyncio.ensure_future(self._commit.connected.wait())
        writer = self._running()
        await asyncio.wait({connected, writer}, return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            connected.cancel()
            writer.result()

    async def wait_failed(self) -> None:
        """Run until a part of the store fails, and raise its error."""
        parts = {self._running(), *self._following}
        if self._sweeping is not None:
            parts.add(self._sweeping)
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()

    @property
    def problem(self) -> str:
        """Why check-ins cannot be recorded now; "" if they can."""
        return self._commit.problem

    @property
    def head(self) -> int:
        """The largest number known to be committed."""
        return self._commit.head

    @property
    def log_id(self) -> uuid.UUID:
        """The log that `head` belongs to."""
        return self._commit.log_id

    @property
    def position(self) -> CommittedBatch:
        """The log id, its parent and the head, as a batch without events."""
        return self._commit.batch(())

    @property
    def counters(self) -> CheckIns:
        """Check-ins by result. Handlers add those that they refuse."""
        return self._commit.counters

    def metrics(self) -> Iterable[Metric]:
        yield metrics.gauge("log_head", "Largest committed sequence number", self.head)
        yield metrics.gauge(
            "commit_queue_length", "Check-ins waiting for a commit", self._commit.pending
        )
        yield from self.counters.metrics()
        yield from self.user_counts.metrics()
        yield from self.sweeper.metrics()

    def warnings(self) -> list[str]:
        """Return warnings about the database, for operators."""
        return [
            *(f"database: {name} is off: a crash may lose check-ins" for name in self._not_durable),
            *(f"database: {warning}" for warning in self._identity_warnings),
        ]

    def presence_warnings(self) -> dict[str, str]:
        """Return what keeps users from being declared offline in time, by kind, for operators."""
        return {} if self.problem else self.sweeper.warnings()

    def submit(self, check_in: CheckIn, done: Done) -> None:
        """Queue a check-in; see `GroupCommit.submit`."""
        self._commit.submit(check_in, done)

    async def record(self, check_in: CheckIn) -> Event:
        """Commit a check-in and return its event.

        Raises `StoreUnavailable` if it is not known to be recorded, `UserUnknown` if enrolment is
        closed and the e-mail is not enrolled.
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

    async def enrol(self, email: str) -> bool:
        """Enrol a (canonical) e-mail; False: it is there already. Raises `StoreUnavailable`."""
        return bool(enrolment.changed(await self._commit.write(enrolment.enrol([email]))))

    async def remove(self, email: str) -> bool:
        """Remove an e-mail with its record; False: it is unknown. Raises `StoreUnavailable`."""
        return bool(enrolment.changed(await self._commit.write(enrolment.remove([email]))))

    async def user(self, email: str) -> StatusRecord | None:
        """See `queries.user`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.user(connection, email, self._interval_s)

    async def users(self, after: str, limit: int, last: str | None = None) -> UserPage:
        """See `queries.users`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.users(connection, after, limit, self._interval_s, last)

    async def last_user(self, after: str, limit: int) -> str | None:
        """See `queries.last_user`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.last_user(connection, after, limit)

    async def history(self, email: str, before: int | None, limit: int) -> HistoryPage:
        """See `queries.history`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.history(connection, email, before, limit)

    async def history_end(self, email: str, before: int, limit: int) -> HistoryEnd:
        """See `queries.history_end`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.history_end(connection, email, before, limit)

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

    async def log_slice(self, after: int, span: int, emails: Sequence[str] | None) -> LogSlice:
        """See `queries.log_slice`. Raises `HistoryGone` and `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.log_slice(connection, after, span, emails)

    async def log_span(self) -> LogSpan:
        """See `queries.log_span`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.log_span(connection)

    async def announcers(self) -> tuple[uuid.UUID, list[str]]:
        """See `queries.announcers`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await queries.announcers(connection)

    async def publish_announcers(self, entries: Sequence[tuple[str, str]]) -> None:
        """See `queries.publish`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._keepers.connection() as connection:
                await queries.publish(connection, entries)

    async def group_keys(self) -> list[GroupKey]:
        """See `group_keys.read`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._pool.connection() as connection:
                return await group_keys.read(connection)

    async def keep_group_keys(self, readers: bytes | None) -> list[GroupKey]:
        """See `group_keys.keep`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._keepers.connection() as connection:
                return await group_keys.keep(connection, readers)

    async def record_crls(self, marks: Sequence[CRLMark]) -> list[CRLMark]:
        """See `queries.record_crls`. Raises `StoreUnavailable`."""
        with _reading():
            async with self._keepers.connection() as connection:
                return await queries.record_crls(connection, marks)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all submitted check-ins are committed and answered.

        After `timeout_s` the others are answered with an error: not known to be recorded.
        """
        if not await self._commit.drain(timeout_s):
            writer = self._running()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._commit.refuse()

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Close the connections, and stop an embedded PostgreSQL, in `timeout_s`. See `drain`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        if self._writer is not None:
            self._commit.stop()
            connected = self._commit.connected.is_set()  # else it only tries to
            patience_s = min(self._settings.commit_timeout_s, timeout_s / 2) if connected else 0
            _, late = await asyncio.wait({self._writer}, timeout=patience_s)
            for task in late:
                task.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        for pool in self._pools:
            await pool.close()
        if self._embedded is not None:
            await self._embedded.stop(deadline - asyncio.get_running_loop().time())

    def kill(self) -> None:
        """End an embedded PostgreSQL at once: what it has committed is there at its next start."""
        if self._embedded is not None:
            self._embedded.kill()

    def _make_pool(self, size: int) -> Pool:
        self._pools.append(Pool(size, self._settings.connect_timeout_s, READ_WAIT_S))
        return self._pools[-1]

    def _running(self) -> asyncio.Task[None]:
        if self._writer is None:
            raise RuntimeError("the store is not started")
        return self._writer

    async def _connect_notify_channel(self) -> Connection:
        if not self._commit.connected.is_set():
            # The writer finds the database first, and with it the address.
            raise StoreUnavailable(f"database away: {self.problem}")
        return await Connection.open(self._parameters, self._settings.connect_timeout_s)

    async def _connect_writer(self) -> Connection:
        connection = await Connection.open(self._parameters, self._settings.connect_timeout_s)
        try:
            await migrate.upgrade(connection)
            await self._prepare(connection)
            # Again, behind the lock on the head: a newer version may have migrated meanwhile.
            migrate.check(await migrate.current(connection))
            if self._check_crls is not None and not self._connected_before:
                self._check_crls(await queries.record_crls(connection, ()))
            if self._sealing is not None:
                self._sealing.use(await group_keys.keep(connection, self._sealing.readers))
        except StatementFailed as error:
            await connection.close()
            raise StoreUnavailable(
                f"{shown(connection.parameters)}: the database refuses: {error}"
            ) from error
        except BaseException:
            await connection.close()
            raise
        for pool in self._pools:
            await pool.point_to(connection.parameters)
        self._connected_before = True
        return connection

    async def _prepare(self, connection: Connection) -> None:
        timeout_ms = int(self._settings.commit_timeout_s * 1000 * _SERVER_TIMEOUT_SHARE)
        await connection.execute(_SESSION.format(timeout_ms=timeout_ms))
        await self._check_durability(connection)
        here = await database_identity(connection)
        if (warnings := here.warnings()) != self._identity_warnings:
            for warning in warnings:
                self._log.warning("the database does not identify itself", reason=warning)
        self._identity_warnings = warnings
        renewed = await connection.execute(
            _RENEW_LOG,
            [here.system_identifier, here.timeline_id, str(self.log_id), self.head],
        )
        for log_id, parent, fork in renewed:
            self._log.info("new log begun", log_id=log_id, parent=parent, fork=fork)
        await connection.execute(
            WRITE_SETTINGS, [self._when.interval_s, self._when.offline_after_s]
        )
        for prepare in (*batch_statements.PREPARE, PREPARE_MARK, PREPARE_SWEEP):
            await connection.execute(prepare)

    async def _check_durability(self, connection: Connection) -> None:
        """Raises `ConfigError` at the start, `StoreUnavailable` if it has changed since."""
        off = [name for (name,) in await connection.execute(_DURABILITY)]
        if off and self._settings.durability == "required":
            message = (
                f"database.durability: {' and '.join(off)} off in the database: a crash may lose "
                "acknowledged check-ins: turn on, or set database.durability: warn"
            )
            if self._connected_before:
                raise StoreUnavailable(message)  # not ready until an operator has turned it on
            raise ConfigError(message)
        if off != self._not_durable:
            for name in off:
                self._log.warning("a crash may lose acknowledged check-ins", off=name)
        self._not_durable = off
        await connection.execute(_PIN_DURABILITY)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except StatementFailed as error:
        raise StoreUnavailable(f"the database refuses: {error}") from error
