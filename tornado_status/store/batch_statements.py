"""The statements of a batch of check-ins: the lock of the head row, and the two that record.

Every writer of the log or of `user_status` locks the head row first, in the same transaction.
Nothing that a statement reads after the lock changes before its commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from tornado_status.model.records import CheckIn

LOCK_HEAD = "SELECT seq FROM head FOR UPDATE"
# The same, but it fails (division_by_zero) if another server has begun a new log: this server would
# announce under the old log id. It also fails if an older copy of the database has taken its place.
# PostgreSQL evaluates the row again once it has the lock.
_PREPARE_LOCK = """\
PREPARE lock_head (uuid, bigint) AS
SELECT 1 / (log_id = $1 AND seq >= $2)::int FROM head FOR UPDATE"""

# For a batch in which no user is twice, while enrolment is open: nearly all batches. One descent of
# the index finds the row of a known user. The update goes by its place (ctid), which the lock of
# the head keeps. `devices` changes only with the certificate.
_PREPARE_DISTINCT = """\
PREPARE record_distinct (text[], inet[], integer[], text[], text[]) AS
WITH arrived AS MATERIALIZED (
    SELECT i.*, s.ctid AS place, s.seq AS newest, s.last_seen IS NULL AS is_new,
           s.offline IS TRUE AS is_back
    FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY
         AS i(email, client_ip, client_port, issuer, serial, n)
    LEFT JOIN user_status s ON s.email = i.email
), now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at FROM head
), log AS (
    INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial, previous)
    SELECT base + n, at,
           CASE WHEN is_new THEN 'new' WHEN is_back THEN 'back' ELSE 'check-in' END,
           email, client_ip, client_port, issuer, serial, newest
    FROM arrived, now
), known AS (
    UPDATE user_status u SET
        seq = base + n, last_seen = at, client_ip = a.client_ip, client_port = a.client_port,
        issuer = a.issuer, serial = a.serial, first_seen = coalesce(u.first_seen, at),
        offline = false,
        devices = CASE
            WHEN u.serial = a.serial AND u.issuer = a.issuer THEN u.devices
            ELSE other_devices(
                coalesce(u.devices, '[]')
                    || user_device(u.issuer, u.serial, u.last_seen, u.client_ip, u.client_port),
                a.issuer, a.serial)
        END
    FROM arrived a, now WHERE u.ctid = a.place
), unknown AS (
    INSERT INTO user_status
        (email, seq, last_seen, client_ip, client_port, issuer, serial, first_seen)
    SELECT email, base + n, at, client_ip, client_port, issuer, serial, at
    FROM arrived, now WHERE place IS NULL
), moved AS (
    UPDATE head SET seq = head.seq + cardinality($1), at = now.at FROM now
)
SELECT base, (extract(epoch FROM at) * 1000000)::bigint,
       ARRAY(SELECT n FROM arrived WHERE is_new), ARRAY(SELECT n FROM arrived WHERE is_back), NULL
FROM now"""

# For any batch. The arrays hold one element a check-in, in order of arrival. Parameter $6 is the
# position of the check-in of the same user before it in this batch, or 0. Parameter $7 is 1 for the
# last check-in of its user, which alone becomes the user's status, else 0. It is 2 instead of 1 if
# the batch has another device of that user too. Parameter $8 says whether enrolment is closed.
_PREPARE_ANY = """\
PREPARE record_any
    (text[], inet[], integer[], text[], text[], integer[], integer[], boolean) AS
WITH accepted AS MATERIALIZED (
    SELECT i.*, row_number() OVER (ORDER BY i.n) AS k, s.seq AS newest,
           i.before = 0 AND s.last_seen IS NULL AS is_new, i.before = 0 AND s.offline AS is_back
    FROM unnest($1, $2, $3, $4, $5, $6, $7) WITH ORDINALITY
         AS i(email, client_ip, client_port, issuer, serial, before, role, n)
    LEFT JOIN user_status s ON s.email = i.email
    WHERE NOT $8 OR s.email IS NOT NULL
), now AS MATERIALIZED (
    SELECT seq AS base, greatest(at, clock_timestamp()) AS at FROM head
), log AS (
    INSERT INTO check_in (seq, at, event, email, client_ip, client_port, issuer, serial, previous)
    SELECT base + k, at,
           CASE WHEN is_new THEN 'new' WHEN is_back THEN 'back' ELSE 'check-in' END,
           email, client_ip, client_port, issuer, serial,
           CASE WHEN before = 0 THEN newest WHEN NOT $8 THEN base + before
                ELSE (SELECT base + a.k FROM accepted a WHERE a.n = accepted.before) END
    FROM accepted, now
), status AS (
    INSERT INTO user_status AS u
        (email, seq, last_seen, client_ip, client_port, issuer, serial, first_seen, devices)
    SELECT email, base + k, at, client_ip, client_port, issuer, serial, at,
           CASE WHEN role = 2 THEN (
               SELECT other_devices(
                   jsonb_agg(user_device(a.issuer, a.serial, at, a.client_ip, a.client_port)),
                   accepted.issuer, accepted.serial)
               FROM accepted a WHERE a.email = accepted.email
           ) END
    FROM accepted, now WHERE role > 0 ORDER BY email
    ON CONFLICT (email) DO UPDATE SET
        seq = excluded.seq, last_seen = excluded.last_seen, client_ip = excluded.client_ip,
        client_port = excluded.client_port, issuer = excluded.issuer, serial = excluded.serial,
        first_seen = coalesce(u.first_seen, excluded.first_seen), offline = false,
        devices = CASE
            WHEN u.serial = excluded.serial AND u.issuer = excluded.issuer
                AND excluded.devices IS NULL THEN u.devices
            ELSE other_devices(
                coalesce(u.devices, '[]') || coalesce(excluded.devices, '[]')
                    || user_device(u.issuer, u.serial, u.last_seen, u.client_ip, u.client_port),
                excluded.issuer, excluded.serial)
        END
), moved AS (
    UPDATE head SET seq = head.seq + (SELECT count(*) FROM accepted), at = now.at FROM now
)
SELECT base, (extract(epoch FROM at) * 1000000)::bigint,
       ARRAY(SELECT n FROM accepted WHERE is_new), ARRAY(SELECT n FROM accepted WHERE is_back),
       CASE WHEN $8 THEN ARRAY(SELECT n FROM accepted ORDER BY n) END
FROM now"""

PREPARE: tuple[str, ...] = (_PREPARE_LOCK, _PREPARE_DISTINCT, _PREPARE_ANY)
"""For a connection that writes check-ins."""


def lock_head_of(log_id: uuid.UUID, head: int) -> str:
    """Return the lock of the head row that fails unless it is of this log, at `head` or later."""
    return f"EXECUTE lock_head ('{log_id}', {head})"


def record(check_ins: Sequence[CheckIn], enrolment_closed: bool) -> str:
    """Return the statement that records a batch, after the lock, in its order.

    It returns one row: the head before, and the time in microseconds since the epoch. Then lists of
    positions from 1: of new users, of those who are back, and of those accepted (NULL: all).
    """
    if enrolment_closed or len({c.email for c in check_ins}) < len(check_ins):
        return record_any(check_ins, enrolment_closed)
    return f"EXECUTE record_distinct ({_columns(check_ins)})"


def record_any(check_ins: Sequence[CheckIn], enrolment_closed: bool) -> str:
    """Return the statement of `record` that is for any batch."""
    last: dict[str, int] = {}
    before = []
    mixed = set()  # users who check in with several certificates at once
    for position, check_in in enumerate(check_ins, start=1):
        earlier = last.get(check_in.email, 0)
        if earlier and check_ins[earlier - 1].serial != check_in.serial:
            mixed.add(check_in.email)
        before.append(str(earlier))
        last[check_in.email] = position
    roles = ["0"] * len(check_ins)
    for email, position in last.items():
        roles[position - 1] = "2" if email in mixed else "1"
    arrays = f"{_columns(check_ins)}, {array(before)}, {array(roles)}"
    return f"EXECUTE record_any ({arrays}, {enrolment_closed})"


def _columns(check_ins: Sequence[CheckIn]) -> str:
    issuers = {c.issuer: _escaped(c.issuer) for c in check_ins}  # one for many
    arrays = (
        # Of these elements none has a quotation mark or a backslash: see `identity` and `CheckIn`.
        array([c.email for c in check_ins]),
        array([c.client_ip for c in check_ins]),
        array([str(c.client_port) for c in check_ins]),
        array([issuers[c.issuer] for c in check_ins]),
        array([c.serial for c in check_ins]),
    )
    return ", ".join(arrays)


def array(elements: Sequence[str]) -> str:
    """Return an array literal of elements that are `_escaped`, or have nothing to escape."""
    body = '{"' + '","'.join(elements) + '"}'
    # standard_conforming_strings is set on the connection: a backslash is just itself.
    return "'" + body.replace("'", "''") + "'"


def _escaped(element: str) -> str:
    """Return any text as an element of an array literal; NUL has no place in PostgreSQL."""
    return element.replace("\\", "\\\\").replace('"', '\\"').replace("\0", "")
