"""The state of alerts in the database: a cursor and a lease for each, and the queued messages.

The log and its head are only read here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from tornado_status.errors import StoreUnavailable
from tornado_status.model.alert import AlertCursor, AlertMessage, UserReturn, committed_at
from tornado_status.model.records import Event
from tornado_status.store.database import Pool, Row, StatementFailed
from tornado_status.store.queries import ENTRY, entry

FORGOTTEN_DAYS = 30  # an alert that no server has run for so long is in no configuration
# A lease that ends later was taken while the database's clock was ahead, and is worth nothing.
LONGEST_LEASE_S = 3600
# Whether `holder` may take the lease of an alert a.
_FREE = (
    "(a.holder IS NULL OR a.holder = %(holder)s OR a.leased_until < now()"
    " OR a.leased_until > now() + %(longest)s * interval '1 second')"
)


class AlertQueue:
    """The cursors and queues of all alerts. Every method raises `StoreUnavailable`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def register(self, names: Sequence[str]) -> None:
        """Let new alerts begin at the log's head, and forget those that no server runs any more."""
        await self._execute(
            "INSERT INTO alert (name, log_id, seq, leased_until)"
            " SELECT name, h.log_id, h.seq, now() FROM unnest(%s::text[]) name, head h"
            " ORDER BY name ON CONFLICT (name) DO NOTHING",
            [list(names)],
        )
        await self._execute(
            "DELETE FROM alert WHERE name <> ALL(%s)"
            " AND leased_until < now() - %s * interval '1 day'",
            [list(names), FORGOTTEN_DAYS],
        )

    async def cursor(self, name: str, holder: uuid.UUID, renew_s: float) -> AlertCursor:
        """Return an alert's cursor. `held` only if the lease lasts `renew_s` more seconds."""
        rows = await self._execute(
            "SELECT a.log_id, a.seq, h.log_id, h.seq,"  # noqa: S608
            " a.holder = %(holder)s AND a.leased_until > now() + %(renew)s * interval '1 second'"
            " AND a.leased_until < now() + %(longest)s * interval '1 second',"
            f" {_FREE},"
            " EXISTS (SELECT FROM alert_message m WHERE m.name = a.name AND m.next_at <= now())"
            " FROM alert a, head h WHERE a.name = %(name)s",
            {
                "name": name,
                "holder": str(holder),
                "renew": renew_s,
                "longest": LONGEST_LEASE_S,
            },
        )
        if not rows:
            raise StoreUnavailable(f"alert {name} is not in the database")
        followed, seq, log_id, head, held, free, due = rows[0]
        return AlertCursor(
            uuid.UUID(followed), seq, uuid.UUID(log_id), head, bool(held), bool(free), due
        )

    async def lease(self, name: str, holder: uuid.UUID, seconds: float) -> bool:
        """Take or renew the lease. Return False if another server holds it."""
        rows = await self._execute(
            "UPDATE alert a SET holder = %(holder)s,"  # noqa: S608
            " leased_until = now() + %(seconds)s * interval '1 second' WHERE a.name = %(name)s"
            f" AND {_FREE} RETURNING 1",
            {
                "name": name,
                "holder": str(holder),
                "seconds": seconds,
                "longest": LONGEST_LEASE_S,
            },
        )
        return bool(rows)

    async def release(self, holder: uuid.UUID) -> None:
        """Give all leases back, so that another server takes over at once."""
        await self._execute(
            "UPDATE alert SET holder = NULL, leased_until = now() WHERE holder = %s RETURNING 1",
            [str(holder)],
        )

    async def scan(self, after: int, last: int, kinds: Sequence[str]) -> tuple[int, list[Event]]:
        """Return the first sequence number above `after` that is kept, and the events up to `last`.

        Only events of these kinds. If the first one is above `after` + 1, some were pruned.
        """
        rows = await self._execute(
            "SELECT (SELECT seq FROM check_in WHERE seq > %(after)s ORDER BY seq LIMIT 1),"  # noqa: S608
            f" {ENTRY}"
            " FROM (VALUES (1)) one LEFT JOIN check_in c"
            " ON c.seq > %(after)s AND c.seq <= %(last)s AND c.event = ANY(%(kinds)s)"
            " ORDER BY c.seq",
            {"after": after, "last": last, "kinds": list(kinds)},
        )
        first = rows[0][0]
        return (after + 1 if first is None else first), [
            entry(row[1:]) for row in rows if row[1] is not None
        ]

    async def advance(
        self,
        name: str,
        holder: uuid.UUID,
        log_id: uuid.UUID,
        seq: int,
        events: Sequence[Event],
        quiet_s: float,
        returns: Sequence[UserReturn] = (),
    ) -> int | None:
        """Move the cursor to `seq` and queue `events`, all or nothing.

        An `offline` is sent after `quiet_s`. If its user returns before, both messages are
        dropped. Return how many were, or None if the lease is lost.
        """
        rows = await self._execute(
            "WITH mine AS ("
            " UPDATE alert SET log_id = %(log_id)s, seq = %(seq)s"
            " WHERE name = %(name)s AND holder = %(holder)s AND leased_until > now() RETURNING 1"
            "), short AS ("
            " DELETE FROM alert_message m"
            " USING unnest(%(r_seq)s::bigint[], %(r_email)s::text[], %(r_at)s::timestamptz[])"
            " r(seq, email, at), mine"
            " WHERE m.name = %(name)s AND m.email = r.email AND m.event = 'offline'"
            " AND m.attempts = 0 AND m.due_at > r.at RETURNING r.seq"
            "), queued AS ("
            " INSERT INTO alert_message"
            " (name, log_id, seq, event, email, at, last_seen, client_ip, client_port,"
            " due_at, next_at)"
            " SELECT %(name)s, %(log_id)s, e.seq, e.event, e.email, e.at,"
            # The log may be ahead of the clock; a message waits no longer for that.
            " nullif(e.last_seen, e.at), e.ip, e.port, d.at,"
            " least(d.at, now() + %(quiet)s * interval '1 second')"
            " FROM mine, unnest(%(seqs)s::bigint[], %(kinds)s::text[], %(emails)s::text[],"
            " %(ats)s::timestamptz[], %(seen)s::timestamptz[], %(ips)s::inet[],"
            " %(ports)s::integer[])"
            " e(seq, event, email, at, last_seen, ip, port), LATERAL (SELECT e.at + CASE e.event"
            " WHEN 'offline' THEN %(quiet)s ELSE 0 END * interval '1 second' AS at) d"
            " WHERE e.seq NOT IN (SELECT seq FROM short) ORDER BY e.seq"
            ") SELECT (SELECT count(*) FROM short) FROM mine",
            {
                "name": name,
                "holder": str(holder),
                "log_id": str(log_id),
                "seq": seq,
                "quiet": quiet_s,
                "r_seq": [each.seq for each in returns],
                "r_email": [each.email for each in returns],
                "r_at": [each.at for each in returns],
                "seqs": [event.seq for event in events],
                "kinds": [str(event.event) for event in events],
                "emails": [event.email for event in events],
                "ats": [committed_at(event) for event in events],
                "seen": [event.last_seen for event in events],
                "ips": [event.client_ip for event in events],
                "ports": [event.client_port for event in events],
            },
        )
        return rows[0][0] if rows else None

    async def due(self, name: str, limit: int) -> list[AlertMessage]:
        """Return messages that are due, each after all earlier ones of its user.

        Users take turns: one who has many messages holds up no other.
        """
        rows = await self._execute(
            # One pass over the queue, however many messages of one user wait in it.
            f"SELECT c.id, c.log_id, c.attempts, {ENTRY} FROM ("  # noqa: S608
            " SELECT m.*, max(m.next_at) OVER earlier AS latest, row_number() OVER earlier AS turn"
            " FROM alert_message m WHERE m.name = %s"
            " WINDOW earlier AS (PARTITION BY m.email ORDER BY m.id)) c"
            " WHERE c.next_at <= now() AND c.next_at = c.latest"
            " ORDER BY c.turn, c.next_at, c.id LIMIT %s",
            [name, limit],
        )
        return [AlertMessage(row[0], uuid.UUID(row[1]), entry(row[3:]), row[2]) for row in rows]

    async def delivered(self, message: AlertMessage) -> None:
        """Delete a message."""
        await self._execute("DELETE FROM alert_message WHERE id = %s RETURNING 1", [message.id])

    async def failed(self, message: AlertMessage, delay_s: float) -> None:
        """Count a failed attempt; the next one is in `delay_s`."""
        await self._execute(
            "UPDATE alert_message SET attempts = attempts + 1,"
            " next_at = now() + %s * interval '1 second' WHERE id = %s RETURNING 1",
            [delay_s, message.id],
        )

    async def give_up(self, name: str, after_s: float, most: int) -> int:
        """Drop messages that failed for `after_s`, and those beyond `most`. Return how many.

        The user with the most messages loses the oldest of them.
        """
        rows = await self._execute(
            "DELETE FROM alert_message WHERE name = %(name)s AND ("
            " (attempts > 0 AND queued_at < now() - %(after)s * interval '1 second')"
            " OR id IN (SELECT id FROM alert_message WHERE name = %(name)s"
            # The newest message of each user comes before the second newest of any.
            " ORDER BY row_number() OVER (PARTITION BY email ORDER BY id DESC), id DESC"
            " OFFSET %(most)s)) RETURNING 1",
            {"name": name, "after": after_s, "most": most},
        )
        return len(rows)

    async def _execute(
        self, sql: str, parameters: Sequence[object] | Mapping[str, object]
    ) -> list[Row]:
        try:
            async with self._pool.connection() as connection:
                return await connection.execute(sql, parameters)
        except StatementFailed as error:
            raise StoreUnavailable(f"the database refuses: {error}") from error
