"""Reading: one user, pages of users, the log. The caller bounds each page."""

from __future__ import annotations

import dataclasses
import datetime
import uuid
from collections.abc import Sequence
from typing import Any

from tornado_status.errors import HistoryGone
from tornado_status.model import presence
from tornado_status.model.records import (
    MAX_LINEAGE,
    Device,
    Event,
    EventPage,
    HistoryEnd,
    HistoryEntry,
    HistoryPage,
    Lineage,
    LogSlice,
    LogSpan,
    LogStep,
    StatusRecord,
    UserPage,
)
from tornado_status.pki.crl import CRLMark
from tornado_status.store.database import Connection, Row
from tornado_status.wire.json_members import MAX_SEQ

# An hour, and twice the refresh interval, after an announcer key was last in use.
PUBLISHED_S = 3600 + 2 * 60

MAX_SLICE = 1000  # events of the log in one read of a follower

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

# The columns of `check_in c` that `entry` reads.
_IS_CHECK_IN = "c.event IN ('check-in', 'new', 'back')"
ENTRY = (
    f"c.seq, c.event, c.email, CASE WHEN {_IS_CHECK_IN} THEN c.at ELSE c.last_seen END,"
    f" host(c.client_ip), c.client_port, CASE WHEN NOT {_IS_CHECK_IN} THEN c.at END"
)
_RECORD = (
    "seq, email, last_seen, host(client_ip), client_port, first_seen, offline, clock_timestamp()"
)

_LINEAGE = f"""\
lineage AS (
    SELECT s.*, 1 AS n FROM head h JOIN log_step s ON s.log_id = h.log_id
    UNION ALL
    SELECT s.*, n + 1 FROM lineage l JOIN log_step s ON s.log_id = l.parent WHERE n < {MAX_LINEAGE}
)"""  # noqa: S608


async def user(connection: Connection, email: str, interval_s: float) -> StatusRecord | None:
    """Return the record of one user, or None for an unknown one.

    `interval_s` is how often a user should check in.
    """
    rows = await connection.execute(
        f"SELECT issuer, serial, devices, {_RECORD} FROM user_status"  # noqa: S608
        " WHERE email = %s AND seq IS NOT NULL",
        [email],
    )
    if not rows:
        return None
    issuer, serial, others, *columns = rows[0]
    record = _record(tuple(columns), interval_s)
    if record.last_seen is None or record.client_ip is None or record.client_port is None:
        return record
    newest = Device(issuer, serial, record.last_seen, record.client_ip, record.client_port)
    known = [_device(other) for other in others or ()]
    return dataclasses.replace(record, devices=(newest, *known))


async def users(
    connection: Connection, after: str, limit: int, interval_s: float, last: str | None = None
) -> UserPage:
    """Return up to `limit` records with an e-mail above `after`, and up to `last` if it is given.

    That is keyset paging: `following` is what to continue after.
    """
    log_id, head = await connection.fetch_one("SELECT log_id, seq FROM head")
    rows = await connection.execute(
        f"SELECT {_RECORD} FROM user_status"  # noqa: S608
        " WHERE email > %(after)s AND (%(last)s::text IS NULL OR email <= %(last)s)"
        " AND seq IS NOT NULL ORDER BY email LIMIT %(limit)s",
        {"after": after, "last": last, "limit": limit + 1},
    )
    records = [_record(row, interval_s) for row in rows[:limit]]
    following = records[-1].email if len(rows) > limit else None
    return UserPage(uuid.UUID(log_id), head, records, following)


async def last_user(connection: Connection, after: str, limit: int) -> str | None:
    """Return the last e-mail of a page as `users` reads it, None if no other one follows."""
    rows = await connection.execute(
        "SELECT email FROM user_status WHERE email > %s AND seq IS NOT NULL"
        " ORDER BY email OFFSET %s LIMIT 2",
        [after, limit - 1],
    )
    return rows[0][0] if len(rows) == 2 else None


async def events(connection: Connection, after: int, limit: int) -> EventPage:
    """Return up to `limit` log entries with a number above `after`, gapless and in order.

    Raises `HistoryGone` if `after` is above the head, or entries behind it are pruned.
    """
    rows = await connection.execute(
        # One statement, one snapshot: the head and the slice of the log belong together.
        f"SELECT h.log_id, h.seq, {ENTRY}"  # noqa: S608
        " FROM head h LEFT JOIN LATERAL (SELECT * FROM check_in WHERE seq > %s"
        " ORDER BY seq LIMIT %s) c ON true ORDER BY c.seq",
        [after, limit],
    )
    log_id, head = uuid.UUID(rows[0][0]), rows[0][1]
    found = [entry(row[2:]) for row in rows if row[2] is not None]
    _check_reach(after, head, found[0].seq if found else None)
    return EventPage(log_id, head, found)


async def log(
    connection: Connection, after: int | None, limit: int
) -> tuple[int, list[HistoryEntry]]:
    """Return the head and up to `limit` entries above `after`, or from the oldest one on.

    Raises `HistoryGone` if entries behind `after` are pruned, or it is above the head.
    """
    rows = await connection.execute(
        f"SELECT h.seq, c.issuer, c.serial, {ENTRY}"  # noqa: S608
        " FROM head h LEFT JOIN LATERAL (SELECT * FROM check_in WHERE seq > %s"
        " ORDER BY seq LIMIT %s) c ON true ORDER BY c.seq",
        [after or 0, limit],
    )
    head: int = rows[0][0]
    found = [HistoryEntry(entry(row[3:]), row[1], row[2]) for row in rows if row[3] is not None]
    if after is not None:
        _check_reach(after, head, found[0].event.seq if found else None)
    return head, found


def _check_reach(after: int, head: int, first: int | None) -> None:
    if after > head:
        raise HistoryGone(f"the newest event is {head}")
    if after < head and first != after + 1:
        raise HistoryGone(f"events after {after} are no longer kept")


async def history(
    connection: Connection, email: str, before: int | None, limit: int
) -> HistoryPage:
    """Return up to `limit` entries of one user, the newest first.

    `before` is the sequence number of the last entry of the previous page. If it is no entry of
    this user, or is pruned meanwhile, the page is empty.
    """
    begin = (
        "SELECT seq FROM user_status WHERE email = %(email)s"
        if before is None
        else "SELECT previous FROM check_in WHERE email = %(email)s AND seq = %(before)s"
    )
    rows = await connection.execute(
        f"WITH RECURSIVE chain AS ("  # noqa: S608
        f" SELECT c.*, 1 AS n FROM check_in c WHERE c.seq = ({begin}) AND c.email = %(email)s"
        " UNION ALL"
        " SELECT c.*, n + 1 FROM chain JOIN check_in c ON c.seq = chain.previous"
        " AND c.email = chain.email WHERE n < %(limit)s)"
        f" SELECT c.issuer, c.serial, c.previous, {ENTRY} FROM chain c ORDER BY c.seq DESC",
        {"email": email, "before": before, "limit": limit},
    )
    entries = [HistoryEntry(entry(row[3:]), row[0], row[1]) for row in rows]
    more = len(entries) == limit and rows[-1][2] is not None
    return HistoryPage(entries, entries[-1].event.seq if more else None)


async def history_end(connection: Connection, email: str, before: int, limit: int) -> HistoryEnd:
    """Return where a page ends that `history` reads, without reading what is in it."""
    rows = await connection.execute(
        "WITH RECURSIVE chain AS ("
        " SELECT seq, previous, 0 AS n FROM check_in WHERE email = %(email)s AND seq = %(before)s"
        " UNION ALL"
        " SELECT c.seq, c.previous, n + 1 FROM chain JOIN check_in c ON c.seq = chain.previous"
        " WHERE c.email = %(email)s AND n < %(limit)s)"
        " SELECT seq, CASE WHEN n = %(limit)s AND previous IS NOT NULL THEN seq END"
        " FROM chain ORDER BY n DESC LIMIT 1",
        {"email": email, "before": before, "limit": limit},
    )
    return HistoryEnd(*rows[0]) if rows else HistoryEnd(before, None)


async def log_slice(
    connection: Connection, after: int, span: int, emails: Sequence[str] | None
) -> LogSlice:
    """Return the events of the next `span` sequence numbers above `after`, at most `MAX_SLICE`.

    With `emails`, only of these users; the database skips the others. Raises
    `HistoryGone` as `events` does.
    """
    rows = await connection.execute(
        "SELECT h.log_id, h.seq,"  # noqa: S608
        f" EXISTS (SELECT FROM check_in WHERE seq = %(next)s), {ENTRY}"
        " FROM head h LEFT JOIN LATERAL (SELECT * FROM check_in"
        " WHERE seq > %(after)s AND seq <= %(last)s"
        " AND (%(emails)s::text[] IS NULL OR email = ANY (%(emails)s::text[]))"
        " ORDER BY seq LIMIT %(limit)s) c ON true ORDER BY c.seq",
        {
            "after": after,
            "next": min(after + 1, MAX_SEQ),  # a client may name any number
            "last": min(after + span, MAX_SEQ),
            "limit": MAX_SLICE,
            "emails": emails and list(emails),
        },
    )
    log_id, head, reaches_back = uuid.UUID(rows[0][0]), rows[0][1], rows[0][2]
    if after > head:
        raise HistoryGone(f"the newest event is {head}")
    if after < head and not reaches_back:
        raise HistoryGone(f"events after {after} are no longer kept")
    found = [entry(row[3:]) for row in rows if row[3] is not None]
    last = found[-1].seq if len(found) == MAX_SLICE else min(after + span, head)
    return LogSlice(log_id, head, found, last)


async def log_span(connection: Connection) -> LogSpan:
    """Return what the log holds, and its lineage."""
    rows = await connection.execute(
        f"WITH RECURSIVE {_LINEAGE}"  # noqa: S608
        " SELECT h.log_id, h.seq, (SELECT min(seq) FROM check_in), l.log_id, l.parent, l.fork, l.at"
        " FROM head h LEFT JOIN lineage l ON true ORDER BY l.n"
    )
    log_id, head, oldest = rows[0][:3]
    return LogSpan(
        uuid.UUID(log_id),
        head,
        head + 1 if oldest is None else oldest,
        tuple(_step(row[3:]) for row in rows if row[3] is not None),
    )


async def lineage(connection: Connection) -> Lineage:
    """Return the newest steps of the log's lineage."""
    rows = await connection.execute(
        f"WITH RECURSIVE {_LINEAGE} SELECT log_id, parent, fork, at FROM lineage ORDER BY n"  # noqa: S608
    )
    return tuple(map(_step, rows))


def _step(row: Row) -> LogStep:
    log_id, parent, fork, at = row
    return LogStep(uuid.UUID(log_id), uuid.UUID(parent), fork, _utc(at))


async def announcers(connection: Connection) -> tuple[uuid.UUID, list[str]]:
    """Return the log id and the certificates (PEM) of announcer keys in use, or soon to be."""
    log_id, certificates = await connection.fetch_one(
        "SELECT h.log_id, ARRAY(SELECT certificate FROM announcer"
        " WHERE used_at > now() - %s * interval '1 second' ORDER BY used_at DESC, kid)"
        " FROM head h",
        [PUBLISHED_S],
    )
    return uuid.UUID(log_id), certificates


async def publish(connection: Connection, entries: Sequence[tuple[str, str]]) -> None:
    """Record announcer keys (name, certificate) as in use; delete those unused for a day."""
    await connection.execute(
        "INSERT INTO announcer (kid, certificate, used_at)"
        " SELECT kid, certificate, now() FROM unnest(%s::text[], %s::text[]) e(kid, certificate)"
        " ORDER BY kid ON CONFLICT (kid) DO UPDATE SET"
        " certificate = excluded.certificate, used_at = excluded.used_at",
        [[kid for kid, _ in entries], [certificate for _, certificate in entries]],
    )
    await connection.execute("DELETE FROM announcer WHERE used_at < now() - interval '1 day'")


async def record_crls(connection: Connection, marks: Sequence[CRLMark]) -> list[CRLMark]:
    """Record the CRLs that are newer than those recorded; return all that are recorded then."""
    if marks:
        await connection.execute(
            "INSERT INTO crl (ca, name, number, this_update, entries)"
            " SELECT * FROM unnest(%s::bytea[], %s::text[], %s::numeric[], %s::float8[],"
            " %s::bytea[]) AS e(ca, name, number, this_update, entries) ORDER BY ca"
            " ON CONFLICT (ca) DO UPDATE SET name = excluded.name, number = excluded.number,"
            " this_update = excluded.this_update, entries = excluded.entries"
            " WHERE (excluded.number, excluded.this_update) > (crl.number, crl.this_update)",
            [list(column) for column in zip(*map(dataclasses.astuple, marks), strict=True)],
        )
    rows = await connection.execute("SELECT ca, name, number, this_update, entries FROM crl")
    return [
        CRLMark(bytes(ca), name, int(number), this_update, bytes(entries))
        for ca, name, number, this_update, entries in rows
    ]


def entry(row: Row) -> Event:
    """Return the event of a row of `ENTRY`."""
    seq, event, email, last_seen, client_ip, client_port, at = row
    seen = None if last_seen is None else _utc(last_seen)
    moment = None if at is None else _utc(at)
    return Event(seq, event, email, seen, client_ip, client_port, moment)


def _device(members: dict[str, Any]) -> Device:
    return Device(
        members["issuer"],
        members["serial"],
        _EPOCH + datetime.timedelta(microseconds=members["microseconds"]),
        members["client_ip"],
        members["client_port"],
    )


def _record(row: Row, interval_s: float) -> StatusRecord:
    seq, email, last_seen, client_ip, client_port, first_seen, offline, now = row
    return StatusRecord(
        seq,
        email,
        None if last_seen is None else _utc(last_seen),
        client_ip,
        client_port,
        presence.state(last_seen, offline, now, interval_s),
        None if first_seen is None else _utc(first_seen),
    )


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment.astimezone(datetime.UTC)
