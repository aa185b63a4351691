"""Reading: one user, pages of users, the log. The caller bounds each page."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence

from tornado_status.checkin import Event, EventPage, LogSlice, LogSpan, StatusRecord, UserPage
from tornado_status.errors import HistoryGone
from tornado_status.store.database import Connection, Row

# An hour, and as long again as two refreshes take, after an announcer was last said to be in use.
PUBLISHED_S = 3600 + 2 * 60

MAX_SLICE = 1000  # events of the log at once, for who follows it

_RECORD = "seq, email, last_seen, host(client_ip), client_port"


async def user(connection: Connection, email: str) -> StatusRecord | None:
    """Return the record of one user, or None for someone who never checked in."""
    rows = await connection.execute(
        f"SELECT {_RECORD} FROM user_status WHERE email = %s AND seq IS NOT NULL",  # noqa: S608
        [email],
    )
    return _record(rows[0]) if rows else None


async def users(connection: Connection, after: str, limit: int) -> UserPage:
    """Return up to `limit` records with an e-mail above `after` (keyset paging)."""
    stream, head = await connection.fetch_one("SELECT stream, seq FROM head")
    rows = await connection.execute(
        f"SELECT {_RECORD} FROM user_status"  # noqa: S608
        " WHERE email > %s AND seq IS NOT NULL ORDER BY email LIMIT %s",
        [after, limit + 1],
    )
    records = [_record(row) for row in rows[:limit]]
    following = records[-1].email if len(rows) > limit else None
    return UserPage(uuid.UUID(stream), head, records, following)


async def events(connection: Connection, after: int, limit: int) -> EventPage:
    """Return up to `limit` log entries with a number above `after`, gapless and in order.

    Raises `HistoryGone` where `after` is above the head, or entries behind it are pruned.
    """
    rows = await connection.execute(
        # One statement, one snapshot: the head and the slice of the log belong together.
        "SELECT h.stream, h.seq, c.seq, c.event, c.email, c.at, host(c.client_ip), c.client_port"
        " FROM head h LEFT JOIN LATERAL (SELECT * FROM check_in WHERE seq > %s"
        " ORDER BY seq LIMIT %s) c ON true ORDER BY c.seq",
        [after, limit],
    )
    stream, head = uuid.UUID(rows[0][0]), rows[0][1]
    found = [_event(row[2:]) for row in rows if row[2] is not None]
    if after > head:
        raise HistoryGone(f"the newest event is {head}")
    if after < head and (not found or found[0].seq != after + 1):
        raise HistoryGone(f"events after {after} are no longer kept")
    return EventPage(stream, head, found)


async def log_slice(
    connection: Connection, after: int, span: int, emails: Sequence[str] | None
) -> LogSlice:
    """Return what the next `span` numbers above `after` hold, at most `MAX_SLICE` events.

    With `emails`, only of these users; the rest is passed over in the database. Raises
    `HistoryGone` as `events` does.
    """
    rows = await connection.execute(
        "SELECT h.stream, h.seq, EXISTS (SELECT FROM check_in WHERE seq = %(after)s + 1),"
        " c.seq, c.event, c.email, c.at, host(c.client_ip), c.client_port"
        " FROM head h LEFT JOIN LATERAL (SELECT * FROM check_in"
        " WHERE seq > %(after)s AND seq <= %(after)s + %(span)s"
        " AND (%(emails)s::text[] IS NULL OR email = ANY (%(emails)s::text[]))"
        " ORDER BY seq LIMIT %(limit)s) c ON true ORDER BY c.seq",
        {"after": after, "span": span, "limit": MAX_SLICE, "emails": emails and list(emails)},
    )
    stream, head, reaches_back = uuid.UUID(rows[0][0]), rows[0][1], rows[0][2]
    if after > head:
        raise HistoryGone(f"the newest event is {head}")
    if after < head and not reaches_back:
        raise HistoryGone(f"events after {after} are no longer kept")
    found = [_event(row[3:]) for row in rows if row[3] is not None]
    last = found[-1].seq if len(found) == MAX_SLICE else min(after + span, head)
    return LogSlice(stream, head, found, last)


async def log_span(connection: Connection) -> LogSpan:
    """Return what the log holds."""
    stream, head, oldest = await connection.fetch_one(
        "SELECT stream, seq, (SELECT min(seq) FROM check_in) FROM head"
    )
    return LogSpan(uuid.UUID(stream), head, head + 1 if oldest is None else oldest)


async def announcers(connection: Connection) -> tuple[uuid.UUID, list[str]]:
    """Return the stream and the certificates (PEM) of who signed in the last hour, or soon will."""
    stream, certificates = await connection.fetch_one(
        "SELECT h.stream, ARRAY(SELECT certificate FROM announcer"
        " WHERE used_at > now() - %s * interval '1 second' ORDER BY used_at DESC, kid)"
        " FROM head h",
        [PUBLISHED_S],
    )
    return uuid.UUID(stream), certificates


async def publish(connection: Connection, entries: Sequence[tuple[str, str]]) -> None:
    """Note that announcers (key name, certificate) are in use now; forget those long gone."""
    await connection.execute(
        "INSERT INTO announcer (kid, certificate, used_at)"
        " SELECT kid, certificate, now() FROM unnest(%s::text[], %s::text[]) e(kid, certificate)"
        " ORDER BY kid ON CONFLICT (kid) DO UPDATE SET"
        " certificate = excluded.certificate, used_at = excluded.used_at",
        [[kid for kid, _ in entries], [certificate for _, certificate in entries]],
    )
    await connection.execute("DELETE FROM announcer WHERE used_at < now() - interval '1 day'")


def _record(row: Row) -> StatusRecord:
    seq, email, last_seen, client_ip, client_port = row
    return StatusRecord(seq, email, _utc(last_seen), client_ip, client_port)


def _event(row: Row) -> Event:
    seq, event, email, at, client_ip, client_port = row
    return Event(seq, event, email, _utc(at), client_ip, client_port)


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)
