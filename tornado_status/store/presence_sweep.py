"""The presence sweep: finds users who have gone offline, records that in the log, and prunes it.

A user is offline once the newest entry is older than `offline_after_s`. Age is not measured by the
database's time of day, which may be set, and which the log's own times follow only forward. The
writer notes at each sweep how long servers have watched the log and where it ends: a mark. Entries
up to a mark are at least as old as the mark.

The log is scanned once, in order: `head.swept` is the cursor, so no index on a time is needed. A
reading connection finds candidates; the writer decides, under the head lock, whether an entry is
still the user's newest. Several servers therefore never record it twice, nor of a user who is back.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client.core import Metric

from tornado_status.config.settings import PresenceSettings
from tornado_status.errors import StoreError
from tornado_status.model import presence
from tornado_status.model.records import Event, EventKind
from tornado_status.observe import metrics
from tornado_status.store.database import Connection, Pool, Row
from tornado_status.store.database_clock import DatabaseClock, elapsed_s
from tornado_status.store.group_commit import GroupCommit, Work

SCAN = 5000  # entries scanned at a time: some 30 ms of CPU of a reading connection
MAX_OFFLINE = 512  # users a commit: no more than a batch of check-ins, which may wait behind it
PRUNE = 2000  # entries deleted at a time
PAUSE_S = 0.02  # between two of them: the disk is for check-ins first
_EVER_S = 10 * 365 * 86400.0  # since the last mark, before the first
LATE_AFTER_SWEEPS, MIN_LATE_S = 4, 20.0  # one sweep that fails is no reason to warn
AHEAD_S = 5.0  # NTP steps a clock by less

# Plans that follow the keys, whatever the statistics say of a young database.
_BY_KEY = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off;"
    " SET LOCAL enable_mergejoin = off; SET LOCAL jit = off; "
)

# `past` is the newest mark that is old enough, `next` the one after it. Entries between the two are
# old enough if both marks say so. One is not enough: `at` stands still while the clock is behind
# the log, and leaps when the clock is set forward.
FIND_SILENT = """\
WITH past AS MATERIALIZED (
    SELECT m.seq, m.at, h.watched_ms - %(offline_after_ms)s AS limit_ms, m.watched_ms
    FROM head h, presence_mark m WHERE m.watched_ms <= h.watched_ms - %(offline_after_ms)s
    ORDER BY m.watched_ms DESC LIMIT 1
), edge AS MATERIALIZED (
    SELECT past.seq AS sure, coalesce(next.seq, past.seq) AS last,
           least(past.at + (limit_ms - past.watched_ms) * interval '1 ms',
                 next.at - (next.watched_ms - limit_ms) * interval '1 ms') AS at
    FROM past LEFT JOIN LATERAL (
        SELECT * FROM presence_mark m WHERE m.watched_ms > past.watched_ms
        ORDER BY m.watched_ms LIMIT 1
    ) next ON true
), slice AS MATERIALIZED (
    SELECT c.seq, c.email, c.seq <= edge.sure OR c.at <= edge.at AS old
    FROM head h CROSS JOIN edge CROSS JOIN LATERAL (
        SELECT seq, at, email FROM check_in WHERE seq > h.swept AND seq <= edge.last
        ORDER BY seq LIMIT %(scan)s
    ) c
), old AS MATERIALIZED (
    SELECT seq, email FROM slice WHERE old
), silent AS MATERIALIZED (
    SELECT o.seq, o.email FROM old o
    JOIN user_status s ON s.email = o.email AND s.seq = o.seq
    WHERE NOT s.offline AND s.last_seen IS NOT NULL ORDER BY o.seq LIMIT %(most)s
)
SELECT h.swept, (SELECT count(*) FROM old), (SELECT max(seq) FROM old),
       ARRAY(SELECT seq FROM silent ORDER BY seq), ARRAY(SELECT email FROM silent ORDER BY seq),
       h.interval_s, h.offline_after_s
FROM head h"""

# Each server writes its own when it connects; the others read them with each sweep.
WRITE_SETTINGS = "UPDATE head SET interval_s = %s, offline_after_s = %s"

# Parameter $1 is what this server left in `watched_ms` by its last mark, $2 how long ago that was
# by its own clock. If no other server made a mark since, the log was watched for so long. Otherwise
# the database's clock says when the other did, and may not say more. After $3 without a mark no
# server was running: the marks begin anew, so no user is found silent before another $4.
# `grace_until` is for servers of revision 0005.
PREPARE_MARK = """\
PREPARE mark (bigint, bigint, bigint, bigint) AS
WITH state AS MATERIALIZED (
    SELECT seq, at, swept_at, watched_ms, clock_timestamp() AS clock FROM head
), step AS MATERIALIZED (
    SELECT *, CASE WHEN watched_ms = $1 THEN $2 ELSE
        greatest(0, least($2, (extract(epoch FROM clock - swept_at) * 1000)::bigint)) END AS ms
    FROM state
), now AS MATERIALIZED (
    SELECT *, ms > $3 AS away, watched_ms + least(ms, $3) AS now_ms FROM step
), old AS (
    DELETE FROM presence_mark m USING now WHERE away OR m.watched_ms <
        (SELECT max(p.watched_ms) FROM presence_mark p WHERE p.watched_ms <= now_ms - $4)
), mark AS (
    INSERT INTO presence_mark (watched_ms, seq, at)
    SELECT now_ms, seq, greatest(at, clock) FROM now
    WHERE away OR seq > coalesce((SELECT max(seq) FROM presence_mark), -1)
    ON CONFLICT (watched_ms) DO UPDATE SET seq = excluded.seq, at = excluded.at
), moved AS (
    UPDATE head SET watched_ms = now_ms, swept_at = clock, grace_until = CASE
        WHEN away THEN greatest(now.at, clock) + $4 * interval '1 ms' ELSE head.grace_until END
    FROM now
)
SELECT now_ms, extract(epoch FROM clock)::float8, extract(epoch FROM at - clock)::float8,
       CASE WHEN away AND swept_at IS NOT NULL THEN ms END
FROM now"""

# Parameter $1 is the cursor at which the scan began; another server may have moved it. Parameter $2
# is the cursor after the sweep, $3 the candidates' newest entries.
PREPARE_SWEEP = """\
PREPARE sweep (bigint, bigint, bigint[]) AS
WITH now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at, swept = $1 AS due FROM head
), gone AS MATERIALIZED (
    SELECT s.email, s.seq, s.last_seen, row_number() OVER (ORDER BY s.seq) AS k
    FROM now, unnest($3) AS i(seq)
    JOIN check_in c ON c.seq = i.seq
    JOIN user_status s ON s.email = c.email AND s.seq = c.seq
    WHERE now.due AND NOT s.offline
), log AS (
    INSERT INTO check_in (seq, at, event, email, previous, last_seen)
    SELECT base + k, at, 'offline', email, gone.seq, last_seen FROM gone, now
), status AS (
    UPDATE user_status u SET seq = base + k, offline = true
    FROM gone, now WHERE u.email = gone.email
), moved AS (
    UPDATE head SET seq = head.seq + (SELECT count(*) FROM gone), at = now.at, swept = $2
    FROM now WHERE now.due
)
SELECT base, at, due, ARRAY(SELECT email FROM gone ORDER BY k),
       ARRAY(SELECT last_seen FROM gone ORDER BY k)
FROM now"""

PRUNE_LOG = """\
WITH slice AS MATERIALIZED (
    SELECT seq, at FROM check_in
    WHERE seq > %(pruned)s AND seq <= (SELECT swept FROM head) ORDER BY seq LIMIT %(most)s
), deleted AS (
    DELETE FROM check_in WHERE seq > %(pruned)s AND seq <=
        (SELECT max(seq) FROM slice WHERE at < to_timestamp(%(before)s))
    RETURNING seq
)
SELECT count(*), max(seq) FROM deleted"""


@dataclass(frozen=True, slots=True)
class _Silent:
    """Users whose newest entry is old, found in a scan up to the sequence number `to`."""

    cursor: int
    to: int
    seqs: Sequence[int]
    emails: Sequence[str]
    more: bool


class PresenceSweep:
    """Sweeps and prunes periodically. An unavailable database only delays it.

    `gone_offline` counts users that this server declared offline, `pruned` entries it deleted.
    `clock` is the database's.
    """

    def __init__(
        self,
        commit: GroupCommit,
        pool: Pool,
        *,
        when: PresenceSettings,
        every_s: float,
        retention_s: float,
    ) -> None:
        self._commit = commit
        self._pool = pool
        self._when = when
        self._others: list[float] = []
        self._offline_after_ms = int(when.offline_after_s * 1000)
        self._every_s = every_s
        self._retention_s = retention_s
        self._swept_at: float | None = None
        self._waiting_since = time.monotonic()
        self._reason = ""  # of the last sweep, if it failed
        self._marked: tuple[int, float] | None = None  # the last one: `watched_ms`, and our clock
        self._ahead_s: float | None = None
        self.clock = DatabaseClock(when.offline_after_s)
        self.gone_offline = 0
        self.pruned = 0
        self._log = structlog.get_logger()

    @property
    def swept_ago_s(self) -> float | None:
        """How long ago a sweep, of any server, was seen to be complete; None before the first."""
        return None if self._swept_at is None else time.monotonic() - self._swept_at

    def warnings(self) -> dict[str, str]:
        """Return what is wrong with presence, by kind."""
        found = {}
        late_s = time.monotonic() - (self._swept_at or self._waiting_since)
        if late_s > max(LATE_AFTER_SWEEPS * self._every_s, MIN_LATE_S):
            reason = f": {self._reason}" if self._reason else ""
            found["late"] = f"the last presence sweep was {late_s:.0f} s ago{reason}"
        if self._ahead_s is not None and self._ahead_s > AHEAD_S:
            found["ahead"] = (
                f"the log is {self._ahead_s:.0f} s ahead of the database's clock, which was wrong "
                "or is: new events all get the log's time; see docs/presence.md"
            )
        return found

    def metrics(self) -> Iterable[Metric]:
        ago_s = self.swept_ago_s
        yield metrics.gauges(
            "last_sweep_timestamp_seconds",
            "When a server last finished the presence sweep, in seconds since the epoch",
            [],
            [] if ago_s is None else [([], time.time() - ago_s)],
        )
        yield metrics.gauges(
            "log_ahead_seconds",
            "How far the log's newest time is ahead of the database's clock",
            [],
            [] if self._ahead_s is None else [([], max(0.0, self._ahead_s))],
        )
        yield metrics.counter(
            "users_gone_offline", "Users that this server declared offline", self.gone_offline
        )
        yield metrics.counter(
            "log_events_pruned", "Events of the log that this server deleted", self.pruned
        )

    async def run(self) -> None:
        """Mark, sweep and prune until cancelled.

        Each for itself: a sweep or a pruning that has much to do must not look as if no server ran.
        """
        await self._commit.connected.wait()
        self._waiting_since = time.monotonic()
        await asyncio.gather(*(self._repeat(each) for each in (self.mark, self.sweep, self.prune)))

    async def _repeat(self, work: Callable[[], Awaitable[object]]) -> None:
        reported = ""
        while True:
            await self._commit.connected.wait()
            try:
                await work()
                reported = ""
            except StoreError as error:
                if (reason := str(error)) != reported:
                    reported = reason
                    self._log.warning("presence work postponed", step=work.__name__, reason=reason)
            await asyncio.sleep(self._every_s)

    async def mark(self) -> None:
        """Note that a server runs, and how old the log's entries are. Raises `StoreError`.

        The writer does it: a server that can commit was running, whatever reading connections are
        at. Without check-ins only this makes the writer notice that its connection is lost.
        """
        sent = elapsed_s()
        left, at = self._marked or (-1, -_EVER_S)
        away_ms = int(presence.away_after_s(self._every_s) * 1000)
        statement = (
            f"EXECUTE mark ({left}, {int((sent - at) * 1000)}, {away_ms}, {self._offline_after_ms})"
        )
        [(watched_ms, epoch_s, self._ahead_s, away)] = await self._commit.write(
            Work(statement, lambda rows: (), ())
        )
        self._marked = watched_ms, sent
        if moved_s := self.clock.observe(epoch_s):
            self._log.warning(
                "database clock was set", by_s=round(moved_s), paused="pruning of the log"
            )
        if away is not None:
            self._log.info(
                "offline detection paused",
                reason="no server was running",
                away_s=round(away / 1000),
                grace_s=self._when.offline_after_s,
            )

    async def sweep(self) -> int:
        """Declare silent users offline; return how many.

        Raises `StoreError` if the database cannot do it now; the next sweep does the rest,
        because the commit that decides also moves the cursor.
        """
        try:
            count = await self._sweep()
        except StoreError as error:
            self._reason = str(error)
            raise
        self._swept_at = time.monotonic()
        self._reason = ""
        return count

    async def _sweep(self) -> int:
        count = 0
        while True:
            async with self._pool.connection() as connection:
                silent = await self._find_silent(connection)
            if silent.to > silent.cursor:
                [(_, _, due, emails, _)] = await self._commit.write(self._work(silent))
                count += len(emails)
                self.gone_offline += len(emails)
                if not due:
                    await asyncio.sleep(PAUSE_S)
                    continue  # another server has moved the cursor: look from there
            if not silent.more:
                return count
            await asyncio.sleep(PAUSE_S)

    async def prune(self) -> int:
        """Delete what is older than the retention, up to the cursor; return how many entries.

        Nothing for a while after the database's clock was set: it may be wrong. Not under the head
        lock: the sweep has passed these entries, so no writer needs them. Raises `StoreError`.
        """
        pruned = total = 0
        count: int
        while (now_s := self.clock.steady_time()) is not None:
            async with self._pool.connection() as connection:
                count, last = await connection.fetch_one(
                    _BY_KEY + PRUNE_LOG,
                    {"pruned": pruned, "most": PRUNE, "before": now_s - self._retention_s},
                )
            total += count
            self.pruned += count
            if count < PRUNE:
                break
            pruned = last
            await asyncio.sleep(PAUSE_S)
        return total

    async def _find_silent(self, connection: Connection) -> _Silent:
        cursor, looked, last, seqs, emails, *others = await connection.fetch_one(
            _BY_KEY + FIND_SILENT,
            {"scan": SCAN, "most": MAX_OFFLINE, "offline_after_ms": self._offline_after_ms},
        )
        self._compare(others)
        to = cursor if last is None else last
        if len(seqs) == MAX_OFFLINE:
            to = seqs[-1]  # there may be more of them after it
        more = looked == SCAN or len(seqs) == MAX_OFFLINE
        return _Silent(cursor, to, seqs, emails, more)

    def _compare(self, others: list[float]) -> None:
        ours = [self._when.interval_s, self._when.offline_after_s]
        if others not in (ours, self._others):
            self._log.warning(
                "another server on this database has other presence settings",
                interval_s=others[0],
                offline_after_s=others[1],
                ours=ours,
            )
        self._others = others

    def _work(self, silent: _Silent) -> Work:
        seqs = ",".join(map(str, silent.seqs))
        return Work(
            f"EXECUTE sweep ({silent.cursor}, {silent.to}, '{{{seqs}}}')", _events, silent.emails
        )


def _events(rows: list[Row]) -> list[Event]:
    base, at, _, emails, moments = rows[0]
    at = at.astimezone(datetime.UTC)
    return [
        Event(
            base + k, EventKind.OFFLINE, email, last_seen.astimezone(datetime.UTC), None, None, at
        )
        for k, (email, last_seen) in enumerate(zip(emails, moments, strict=True), start=1)
    ]
