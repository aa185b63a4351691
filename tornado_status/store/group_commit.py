"""Group commit: check-ins that arrive while a commit is in flight are written by the next one.

Owns the writing connection and its queue. Each accepted check-in gets its own row and its own
sequence number. Its `done` is called once, after the commit of its batch. If more is queued, the
database gets the next batch before the last one is answered, so that both work at the same time.
No check-in waits longer than `commit_timeout_s`, wherever it is: see `_expire`.
Sequence numbers are gapless and in commit order over all servers on the database. For that, every
batch first locks the head row, in the same round trip as its write.
"""

from __future__ import annotations

import asyncio
import datetime
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from tornado_status.errors import StoreError, StoreUnavailable, UserUnknown
from tornado_status.model.records import (
    CheckIn,
    CommittedBatch,
    Event,
    EventKind,
    Lineage,
    common_head,
)
from tornado_status.observe.counters import Batch, CheckIns
from tornado_status.runtime.backoff import Backoff
from tornado_status.runtime.rate_limit import RateLimit
from tornado_status.runtime.waiting import wait_set
from tornado_status.store import batch_statements, queries, turns
from tornado_status.store.database import Connection, Row, StatementFailed
from tornado_status.store.outage import Outage
from tornado_status.store.turns import Done, Pending

MAX_BATCH = 512  # rows a commit: beyond it a batch gains nothing and its first rows only wait
RECOVERY_LIMIT = 10_000  # rows read back after a lost answer: one full queue
MAX_PENDING = 10_000  # check-ins that wait for a commit; the next one gets 503
MAX_WORK = 64  # pieces of other work that may wait: from parts of the store and from admins
EXPIRE_EVERY_S = 0.05  # at most, while check-ins are overdue: it looks at the whole queue
RETRY_MIN_S, RETRY_MAX_S = 0.05, 0.5  # between attempts to connect: back within a second

_NO_LOG = uuid.UUID(int=0)  # before the first connection
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_OTHER_LOG = "22012"  # division_by_zero, by the lock of `batch_statements`
_NEW_LOG = "a new log begins"

Subscriber = Callable[[CommittedBatch], None]

Source = tuple[str, "str | None", "int | None"]  # an entry's e-mail and client address


@dataclass(frozen=True, slots=True)
class Work:
    """A write of another part of the store to the log, between two batches of check-ins.

    `statement` runs after the head is locked, in the same transaction. `events` turns its rows into
    the committed events, in order. If the answer is lost, entries of `emails` may be recorded.
    """

    statement: str
    events: Callable[[list[Row]], Sequence[Event]]
    emails: Sequence[str]


@dataclass(frozen=True, slots=True)
class _CommitAnswer:
    """A batch that is committed, the row its commit returned, and when (monotonic, seconds)."""

    batch: list[Pending]
    row: Row
    sent: float
    committed: float


class GroupCommit:
    """The one writer of check-ins of this process.

    `connect` opens a connection that is prepared for writing. Every committed batch goes to
    `subscribers`, in their order, in the same turn of the loop as the answers to its check-ins and
    before them. An exception of a subscriber ends `run`. `on_batch` gets the timing of each batch
    after its answers.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        subscribers: Sequence[Subscriber],
        *,
        enrolment_closed: bool,
        commit_timeout_s: float,
        on_batch: Callable[[Batch], None] | None = None,
    ) -> None:
        self._connect = connect
        self._subscribers = tuple(subscribers)
        self._on_batch = on_batch
        self._enrolment_closed = enrolment_closed
        self._commit_timeout_s = commit_timeout_s
        self._log = structlog.get_logger()
        self._queue: deque[Pending] = deque()
        self._in_flight: list[Pending] = []
        self._expiry: asyncio.TimerHandle | None = None  # while a check-in waits
        self._work: deque[tuple[Work, asyncio.Future[list[Row]]]] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._unconfirmed: set[Source] = set()
        self._unanswered: _CommitAnswer | None = None
        self._answering_failed: Exception | None = None
        self.counters = CheckIns()
        self._warnings = RateLimit()  # a database that fails each commit would fill our log
        self._outage = Outage()
        self.connected = asyncio.Event()
        self.head = 0
        self.log_id = _NO_LOG
        self.lineage: Lineage = ()
        self.problem = "not connected yet"

    @property
    def pending(self) -> int:
        """Check-ins that wait for a commit to begin."""
        return len(self._queue)

    def submit(self, check_in: CheckIn, done: Done) -> None:
        """Queue a check-in; `done` gets its event, or the error, in a later turn of the loop.

        Raises `StoreUnavailable` if the queue is full or the database is known to be away.
        """
        if not self.connected.is_set():
            raise StoreUnavailable(f"database away: {self.problem}")
        if len(self._queue) >= MAX_PENDING:
            raise StoreUnavailable("more check-ins than the database takes")
        if not self._queue:
            self._idle.clear()
            self._wake.set()
        self._queue.append((check_in, done, time.monotonic()))
        if self._expiry is None:
            self._expire_in(self._commit_timeout_s)

    async def write(self, work: Work) -> list[Row]:
        """Run other work on the writing connection, and return its rows.

        Check-ins come first: between two batches of them one piece of other work is done. Raises
        `StoreUnavailable` if it is not known to be done, as `submit` does. Work that times out or
        is cancelled before its turn is not done.
        """
        if not self.connected.is_set():
            raise StoreUnavailable(f"database away: {self.problem}")
        if len(self._work) >= MAX_WORK:
            raise StoreUnavailable("more work than the database takes")
        done: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
        self._work.append((work, done))
        self._wake.set()
        try:
            async with asyncio.timeout(self._commit_timeout_s):
                return await done
        except TimeoutError as error:
            raise StoreUnavailable("the database takes too long") from error

    async def run(self) -> None:
        """Connect, commit what is queued, reconnect when needed; until cancelled or stopped."""
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S)
        while not self._stopping:
            began = time.monotonic()
            try:
                connection = await self._connect()
            except StoreError as error:
                self._lost(error)
                self._outage.away(str(error))
                # From one attempt's beginning to the next: one that has waited for a silent host
                # was pause enough.
                await self._sleep(max(0.0, began + backoff.next_s() - time.monotonic()))
                continue
            backoff.reset()
            try:
                await self._serve(connection)
            except StoreError as error:
                # Check-ins that were never sent stay queued for the next connection.
                self.connected.clear()
                self.problem = str(error)
                self._outage.lost(str(error))
                if not self._queue:
                    self._idle.set()
            finally:
                await connection.close()
        self._lost(StoreUnavailable("shutting down"))

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all that was submitted is answered; return False after `timeout_s`."""
        if not await wait_set(self._idle, timeout_s):
            self._log.warning("drain timed out", pending=len(self._queue))
            return False
        return True

    def refuse(self) -> None:
        """Answer the queued check-ins with an error, after `run` has ended: none is committed."""
        self._lost(StoreUnavailable("shutting down"))

    def stop(self) -> None:
        """Make `run` end after the batch under way."""
        self._stopping = True
        self._wake.set()

    async def _serve(self, connection: Connection) -> None:
        await self._publish_unconfirmed(connection)
        self.problem = ""
        self.connected.set()
        self._outage.over()
        while True:
            if not self._queue:
                self._idle.set()
                self._wake.clear()
                if not self._work and not self._stopping:
                    await self._wake.wait()
                if self._stopping:
                    return
            if not connection.usable:
                # Known before anything was sent: the queue waits for the next connection.
                raise StoreUnavailable("the database closed the connection")
            queue = self._queue
            if queue:
                await self._commit(connection, turns.take(queue, MAX_BATCH))
                if queue and not self._work and connection.usable:
                    continue  # the next batch is sent first
                self._answer()
            if self._work and connection.usable:
                await self._do(connection, *self._work.popleft())

    async def _commit(self, connection: Connection, batch: list[Pending]) -> None:
        self._in_flight = batch
        check_ins = [check_in for check_in, _, _ in batch]
        statement = (
            f"{self._lock_head()}; {batch_statements.record(check_ins, self._enrolment_closed)}"
        )
        sent = time.monotonic()
        # In the next turn of the loop: the statement is then on its way to the database.
        answering = asyncio.get_running_loop().call_soon(self._answer_meanwhile)
        try:
            try:
                rows = await connection.execute(
                    statement, timeout_s=self._commit_timeout_s, durable=True
                )
            finally:
                self._in_flight = []
                answering.cancel()
                self._answer()  # even if this batch failed: the one before it is committed
            if self._answering_failed is not None:
                raise self._answering_failed
        except StatementFailed as error:
            # Rolled back as a whole: nothing of it is recorded.
            if error.sqlstate == _OTHER_LOG:
                self._queue.extendleft(p for p in reversed(batch) if p[1] is not _answered)
                raise StoreUnavailable(_NEW_LOG) from error
            if (suppressed := self._warnings.allow(error.sqlstate)) is not None:
                self._log.error(
                    "commit refused",
                    reason=str(error),
                    sqlstate=error.sqlstate,
                    suppressed=suppressed,
                )
            self._fail(batch, StoreUnavailable("the database refused the commit"))
            self._report_failed(batch, sent, error.sqlstate or type(error).__name__)
            raise StoreUnavailable(str(error)) from error
        except StoreUnavailable as error:
            # Sent, without an answer: only the database knows. See _publish_unconfirmed.
            self._unconfirmed = {(c.email, c.client_ip, c.client_port) for c in check_ins}
            self._fail(batch, error)
            self._report_failed(batch, sent, type(error).__name__)
            raise
        except BaseException:
            self._fail(batch, StoreUnavailable("shutting down"))
            raise
        self._unanswered = _CommitAnswer(batch, rows[0], sent, time.monotonic())

    def _expire_in(self, seconds: float) -> None:
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Answer each check-in that has waited for `commit_timeout_s` with an error.

        One in the queue is never committed. One in flight may be, and is announced then.
        """
        now = time.monotonic()
        overdue = now - self._commit_timeout_s
        late = [pending for pending in self._queue if pending[2] <= overdue]
        if late:
            left = [pending for pending in self._queue if pending[2] > overdue]
            self._queue.clear()
            self._queue.extend(left)
        for position, (check_in, done, submitted) in enumerate(self._in_flight):
            if submitted <= overdue and done is not _answered:
                late.append((check_in, done, submitted))
                self._in_flight[position] = (check_in, _answered, submitted)
        waiting = [*self._queue, *(p for p in self._in_flight if p[1] is not _answered)]
        self._expiry = None
        if waiting:
            oldest = min(submitted for _, _, submitted in waiting)
            self._expire_in(max(EXPIRE_EVERY_S, oldest - overdue))
        elif not self._in_flight and self._unanswered is None:
            self._idle.set()
        self._fail(late, StoreUnavailable("the database takes too long"))

    def _answer_meanwhile(self) -> None:
        try:
            self._answer()
        except Exception as error:  # raised by _commit, which this runs beside
            self._answering_failed = error

    def _answer(self) -> None:
        """Publish the batch that is committed and not answered yet, and call each of its `done`."""
        if self._unanswered is None:
            return
        answered, self._unanswered = self._unanswered, None
        batch, sent, committed = answered.batch, answered.sent, answered.committed
        base, microseconds, new, back, accepted = answered.row
        at = _EPOCH + datetime.timedelta(microseconds=microseconds)
        recorded = batch if accepted is None else [batch[n - 1] for n in accepted]
        special = dict.fromkeys(new, EventKind.NEW) | dict.fromkeys(back, EventKind.BACK)
        events = []
        for number, (check_in, _, _) in enumerate(recorded, start=1):
            position = number if accepted is None else accepted[number - 1]
            kind = special.get(position, EventKind.CHECK_IN)
            events.append(
                Event(
                    base + number,
                    kind,
                    check_in.email,
                    at,
                    check_in.client_ip,
                    check_in.client_port,
                )
            )
        if events:
            self.head = events[-1].seq
            try:
                self._publish(events)
            except BaseException:
                self._fail(batch, StoreUnavailable("shutting down"))
                raise
        for (_, done, _), event in zip(recorded, events, strict=True):
            done(event)
        if len(recorded) < len(batch):
            known = set(accepted)
            for position, (check_in, done, _) in enumerate(batch, start=1):
                if position not in known:
                    done(UserUnknown(check_in.email))
        submitted = [moment for _, _, moment in batch]
        self.counters.batch(submitted, len(recorded), sent, committed)
        if self._on_batch is not None:
            check_ins = [check_in for check_in, _, _ in batch]
            self._on_batch(
                Batch(check_ins, len(recorded), self.head, batch[0][2], sent, committed, None)
            )

    def _report_failed(self, batch: list[Pending], sent: float, error: str) -> None:
        if self._on_batch is not None:
            check_ins = [check_in for check_in, _, _ in batch]
            ended = time.monotonic()
            self._on_batch(Batch(check_ins, 0, self.head, batch[0][2], sent, ended, error))

    def _publish(self, events: Sequence[Event]) -> None:
        """Hand what is committed to the subscribers; `head` and `log_id` are set before."""
        batch = self.batch(events)
        for subscriber in self._subscribers:
            subscriber(batch)

    def batch(self, events: Sequence[Event]) -> CommittedBatch:
        """Return committed events with the log id, its parent and the head."""
        parent = self.lineage[0] if self.lineage else None
        return CommittedBatch(self.log_id, self.head, events, parent)

    def _lock_head(self) -> str:
        return batch_statements.lock_head_of(self.log_id, self.head)

    async def _do(
        self, connection: Connection, work: Work, done: asyncio.Future[list[Row]]
    ) -> None:
        if done.done():
            return
        try:
            rows = await connection.execute(
                f"{self._lock_head()}; {work.statement}",
                timeout_s=self._commit_timeout_s,
                durable=True,
            )
        except StatementFailed as error:
            # Rolled back as a whole, and no fault of the connection.
            if error.sqlstate == _OTHER_LOG:
                self._work.appendleft((work, done))
                raise StoreUnavailable(_NEW_LOG) from error
            _settle(done, StoreUnavailable(f"the database refuses: {error}"))
            return
        except StoreUnavailable as error:
            self._unconfirmed = {(email, None, None) for email in work.emails}
            _settle(done, error)
            raise
        except BaseException:
            _settle(done, StoreUnavailable("shutting down"))
            raise
        events = work.events(rows)
        if events:
            # Those of another process may be older.
            self.head = max(self.head, events[-1].seq)
            self._publish(events)
        if not done.done():
            done.set_result(rows)

    async def _publish_unconfirmed(self, connection: Connection) -> None:
        """Publish the events that a commit without an answer has written after all.

        Its clients got 503, "not known to be recorded". Also read the head, the log id and its
        lineage, which other servers may have changed. Another log has the events up to the number
        where it parts from the one before. Publish a batch without events at a new log.
        """
        known, lost, before = self.head, self._unconfirmed, self.log_id
        # The lock is a write too: once it is durable, so is everything before it.
        head, text = await connection.fetch_one(
            "SELECT seq, log_id FROM head FOR UPDATE", durable=True
        )
        log_id = uuid.UUID(text)
        lineage = await queries.lineage(connection)
        common = head if log_id == before else common_head(lineage, before)
        rows = []
        if lost and common is not None:
            rows = await connection.execute(
                f"SELECT {queries.ENTRY} FROM check_in c WHERE seq > %s AND seq <= %s"  # noqa: S608
                " ORDER BY seq LIMIT %s",
                [known, common, RECOVERY_LIMIT],
            )
        # Not before: should this connection break too, the next one asks again.
        self.log_id, self.lineage, self.head, self._unconfirmed = log_id, lineage, head, set()
        if before not in (log_id, _NO_LOG):
            self._publish(())
        found = (queries.entry(row) for row in rows)
        events = [e for e in found if (e.email, e.client_ip, e.client_port) in lost]
        if events:
            self._log.info("announcing events recorded without an answer", events=len(events))
            self._publish(events)

    def _lost(self, error: StoreError) -> None:
        self.connected.clear()
        self.problem = str(error)
        queued, self._queue = list(self._queue), deque()
        self._fail(queued, StoreUnavailable(f"database away: {error}"))
        while self._work:
            _settle(self._work.popleft()[1], StoreUnavailable(f"database away: {error}"))
        self._idle.set()

    def _fail(self, batch: list[Pending], error: StoreError) -> None:
        for _, done, _ in batch:
            done(error)

    async def _sleep(self, seconds: float) -> None:
        self._wake.clear()
        await wait_set(self._wake, seconds)


def _answered(answer: Event | StoreError) -> None:
    """Take the place of a check-in's `done` that has been called."""


def _settle(done: asyncio.Future[list[Row]], error: StoreError) -> None:
    if not done.done():
        done.set_exception(error)
