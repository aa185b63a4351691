"""User counts: how many users are in each state, counted periodically at a bounded cost.

The table's own pages are counted, so that a check-in costs nothing more. Of a large table a sample
of always the same pages is read: the numbers are estimates, and change only as users do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

import structlog
from prometheus_client.core import Metric

from tornado_status.errors import StoreError
from tornado_status.model import presence
from tornado_status.model.presence import State
from tornado_status.observe import metrics
from tornado_status.store.database import Connection, Pool
from tornado_status.store.group_commit import GroupCommit

EVERY_S = 15.0
MAX_AGE_S = 4 * EVERY_S  # older counts are not shown: the database may be away
MAX_PAGES = 2000  # 16 MB, some 75,000 users, 10 ms of PostgreSQL's CPU

_PAGES = """\
SELECT pg_relation_size('user_status') / current_setting('block_size')::int"""

# The states of `presence.state`. The sample is of whole pages.
_COUNT = """\
SELECT state, count(*) FROM (
    SELECT CASE WHEN offline THEN 'offline' WHEN last_seen IS NULL THEN 'never'
                WHEN now() - last_seen > %(late_after_s)s * interval '1 second' THEN 'late'
                ELSE 'online' END AS state
    FROM user_status TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (0)
) users GROUP BY state"""


class UserCounts:
    """Counts periodically while `run` runs."""

    def __init__(self, commit: GroupCommit, pool: Pool, interval_s: float) -> None:
        self._commit = commit
        self._pool = pool
        self._interval_s = interval_s
        self._counted_at = float("-inf")
        self._users: Mapping[str, int] = {}
        self._log = structlog.get_logger()

    @property
    def users(self) -> Mapping[str, int]:
        """The users by state; empty if the last count is too old."""
        return self._users if time.monotonic() - self._counted_at < MAX_AGE_S else {}

    def metrics(self) -> Iterable[Metric]:
        yield metrics.gauges(
            "users",
            "Users in the database by presence",
            ["state"],
            [([state], number) for state, number in self.users.items()],
        )

    async def run(self) -> None:
        """Count until cancelled."""
        reported = ""
        while True:
            await self._commit.connected.wait()
            try:
                async with self._pool.connection() as connection:
                    self._users = await count(connection, self._interval_s)
                self._counted_at = time.monotonic()
                reported = ""
            except StoreError as error:
                if str(error) != reported:
                    reported = str(error)
                    self._log.warning("users not counted", reason=reported)
            await asyncio.sleep(EVERY_S)


async def count(
    connection: Connection, interval_s: float, max_pages: int = MAX_PAGES
) -> dict[str, int]:
    """Return the users by state, exact if the table has at most `max_pages` pages."""
    [pages] = await connection.fetch_one(_PAGES)
    share = min(1.0, max_pages / max(pages, 1))
    rows = await connection.execute(
        _COUNT,
        {
            "late_after_s": presence.late_after_s(interval_s),
            "percent": share * 100,
        },
    )
    counted: dict[str, int] = dict.fromkeys((str(state) for state in State), 0)
    counted.update((state, round(number / share)) for state, number in rows)
    return counted
