"""The presence sweep: finds users who have gone offline, records that in the log, and prunes it.

A user is offline once the newest entry is a check-in older than `offline_after_s`. The log is
scanned once, in order: `head.swept` is the cursor, so no index on a time is needed. A reading
connection finds candidates; the writer decides, under the head lock, whether an entry is still the
user's newest. Several servers therefore never record it twice, nor of a user who is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client.core import Metric

from tornado_status.config import PresenceSettings
from tornado_status.errors import StoreError
from tornado_status.model import presence
from tornado_status.model.records import Event, EventKind
from tornado_status.observe import metrics
from tornado_status.store.database import Connection, Pool, Row
from tornado_status.store.group_commit import GroupCommit, Work

SCAN = 5000  # entries scanned at a time: some 30 ms of CPU of a reading connection
MAX_OFFLINE = 512  # users a commit: no more than a batch of check-ins, which may wait behind it
PRUNE = 2000  # entries deleted at a time
PAUSE_S = 0.02  # between two of them: the disk is for check-ins first

# Plans that follow the keys, whatever the statistics say of a young database.
_BY_KEY = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off;"
    " SET LOCAL enable_mergejoin = off; SET LOCAL jit = off; "
)

# now() is one moment for the whole statement. If the clock moved between two rows, the later one
# could be taken and the earlier one not, and the cursor would pass it.
FIND_SILENT = """\
WITH slice AS MATERIALIZED (
    SELECT c.seq, c.at, c.email FROM head h CROSS JOIN LATERAL (
        SELECT seq, at, email FROM check_in WHERE seq > h.swept ORDER BY seq LIMIT %(scan)s
    ) c
), old AS MATERIALIZED (
    SELECT seq, email FROM slice WHERE at <= now() - %(offline_after_s)s * interval '1 second'
), silent AS MATERIALIZED (
    SELECT o.seq, o.email FROM old o
    JOIN user_status s ON s.email = o.email AND s.seq = o.seq
    WHERE NOT s.offline AND s.last_seen IS NOT NULL ORDER BY o.seq LIMIT %(most)s
)
SELECT h.swept, extract(epoch FROM clock_timestamp() - h.swept_at)::float8,
       (SELECT count(*) FROM old), (SELECT max(seq) FROM old),
       ARRAY(SELECT seq FROM silent ORDER BY seq), ARRAY(SELECT email FROM silent ORDER BY seq),
       h.interval_s, h.offline_after_s
FROM head h"""

# Each server writes its own when it connects; the others read them with each sweep.
WRITE_SETTINGS = "UPDATE head SET interval_s = %s, offline_after_s = %s"

# Parameter $1 is the cursor at which the scan began; another server may have moved it. Parameter $2
# is the cursor after the sweep, $3 the candidates' newest entries. After $4 without a sweep no
# server was running, and offline detection pauses for $5.
PREPARE_SWEEP = """\
PREPARE sweep (bigint, bigint, bigint[], interval, interval) AS
WITH state AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at, swept, swept_at, grace_until
    FROM head
), now AS MATERIALIZED (
    SELECT base, at, coalesce(at - swept_at > $4, true) AS away,
           swept = $1 AND coalesce(at - swept_at <= $4, false)
               AND coalesce(at >= grace_until, true) AS due
    FROM state
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
    UPDATE head SET
        seq = head.seq + (SELECT count(*) FROM gone), at = now.at, swept_at = now.at,
        swept = CASE WHEN now.due THEN $2 ELSE head.swept END,
        grace_until = CASE WHEN now.away THEN now.at + $5 ELSE head.grace_until END
    FROM now
)
SELECT base, at, due, away, ARRAY(SELECT email FROM gone ORDER BY k),
       ARRAY(SELECT last_seen FROM gone ORDER BY k)
FROM now"""

PRUNE_LOG = """\
WITH slice AS MATERIALIZED (
    SELECT seq, at FROM check_in
    WHERE seq > %(pruned)s AND seq <= (SELECT swept FROM head) ORDER BY seq LIMIT %(most)s
), deleted AS (
    DELETE FROM check_in WHERE seq > %(pruned)s AND seq <=
        (SELECT max(seq) FROM slice WHERE at < now() - %(retention_s)s * interval '1 second')
    RETURNING seq
)
SELECT count(*), max(seq) FROM deleted"""


_PROBE = Work("SELECT 1", lambda rows: (), ())


@dataclass(frozen=True, slots=True)
class _Silent:
    """Users whose newest entry is old, found in a scan up to the sequence number `to`."""

    cursor: int
    to: int
    seqs: Sequence[int]
    emails: Sequence[str]
    swept_ago_s: float | None
    more: bool


class PresenceSweep:
    """Sweeps and prunes periodically. An unavailable database only delays it.

    `gone_offline` counts users that this server declared offline, `pruned` entries it deleted.
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
        self._offline_after_s = when.offline_after_s
        self._every_s = every_s
        self._retention_s = retention_s
        self._swept_at: float | None = None
        self.gone_offline = 0
        self.pruned = 0
        self._log = structlog.get_logger()

    @property
    def swept_ago_s(self) -> float | None:
        """How long ago the last complete sweep of any server was; None before the first."""
        return None if self._swept_at is None else time.monotonic() - self._swept_at

    def metrics(self) -> Iterable[Metric]:
        ago_s = self.swept_ago_s
        yield metrics.gauges(
            "last_sweep_timestamp_seconds",
            "When a server last finished the presence sweep, in seconds since the epoch",
            [],
            [] if ago_s is None else [([], time.time() - ago_s)],
        )
        yield metrics.counter(
            "users_gone_offline", "Users that this server declared offline", self.gone_offline
        )
        yield metrics.counter(
            "log_events_pruned", "Events of the log that this server deleted", self.pruned
        )

    async def run(self) -> None:
        """Sweep and prune until cancelled."""
        reported = ""
        while True:
            await self._commit.connected.wait()
            try:
                await self.sweep(unless_within_s=self._every_s / 2)
                await self.prune()
                reported = ""
            except StoreError as error:
                if str(error) != reported:
                    reported = str(error)
                    self._log.warning("presence sweep postponed", reason=reported)
                with contextlib.suppress(StoreError):
                    # Without check-ins only this makes the writer notice that its connection is
                    # lost too, and connect to another host.
                    await self._commit.write(_PROBE)
            await asyncio.sleep(self._every_s)

    async def sweep(self, *, unless_within_s: float = 0) -> int:
        """Declare silent users offline; return how many.

        Do nothing if another server did so less than `unless_within_s` ago, and is not behind.
        Raises `StoreError` if the database cannot do it now; the next sweep does the rest,
        because the commit that decides also moves the cursor.
        """
        count = 0
        while True:
            async with self._pool.connection() as connection:
                silent = await self._find_silent(connection)
            ago_s = silent.swept_ago_s
            if not silent.more and ago_s is not None and ago_s < unless_within_s:
                self._swept_at = time.monotonic() - max(0.0, ago_s)
                return count
            [(_, _, due, away, emails, _)] = await self._commit.write(self._work(silent))
            count += len(emails)
            self.gone_offline += len(emails)
            if away and ago_s is not None:
                self._log.info(
                    "offline detection paused",
                    reason="no server was running",
                    away_s=round(ago_s),
                    grace_s=self._offline_after_s,
                )
            if not due or not silent.more:
                self._swept_at = time.monotonic()
                return count
            unless_within_s = 0  # the last sweep was this one
            await asyncio.sleep(PAUSE_S)

    async def prune(self) -> int:
        """Delete what is older than the retention, up to the cursor; return how many entries.

        Not under the head lock: the sweep has passed these entries, so no writer needs them. Raises
        `StoreError`.
        """
        pruned = total = 0
        count: int
        while True:
            async with self._pool.connection() as connection:
                count, last = await connection.fetch_one(
                    _BY_KEY + PRUNE_LOG,
                    {"pruned": pruned, "most": PRUNE, "retention_s": self._retention_s},
                )
            total += count
            self.pruned += count
            if count < PRUNE:
                return total
            pruned = last
            await asyncio.sleep(PAUSE_S)

    async def _find_silent(self, connection: Connection) -> _Silent:
        cursor, ago_s, looked, last, seqs, emails, *others = await connection.fetch_one(
            _BY_KEY + FIND_SILENT,
            {"scan": SCAN, "most": MAX_OFFLINE, "offline_after_s": self._offline_after_s},
        )
        self._compare(others)
        to = cursor if last is None else last
        if len(seqs) == MAX_OFFLINE:
            to = seqs[-1]  # there may be more of them after it
        more = looked == SCAN or len(seqs) == MAX_OFFLINE
        return _Silent(cursor, to, seqs, emails, ago_s, more)

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
        away_s = presence.away_after_s(self._every_s)
        return Work(
            f"EXECUTE sweep ({silent.cursor}, {silent.to}, '{{{seqs}}}',"
            f" '{away_s:f} seconds', '{self._offline_after_s:f} seconds')",
            _events,
            silent.emails,
        )


def _events(rows: list[Row]) -> list[Event]:
    base, at, _, _, emails, moments = rows[0]
    at = at.astimezone(datetime.UTC)
    return [
        Event(
            base + k, EventKind.OFFLINE, email, last_seen.astimezone(datetime.UTC), None, None, at
        )
        for k, (email, last_seen) in enumerate(zip(emails, moments, strict=True), start=1)
    ]
