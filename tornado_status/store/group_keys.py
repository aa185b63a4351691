"""The secrets of sealed announcements, in the database: the epoch in use, and the next one."""

from __future__ import annotations

import datetime
import os

from tornado_status.model.records import GROUP_KEY_EPOCH_S, GroupKey
from tornado_status.store.database import Connection, Row
from tornado_status.wire.sealed_datagram import SECRET_BYTES

# If no server ran when the next epoch should have begun: readers need the time to fetch its key.
NOTICE_S = 600

# One server at a time. Epochs below the newest that has begun are over, or withdrawn. Their numbers
# are never used again.
_KEEP = """\
LOCK TABLE group_key IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO group_key (epoch, secret, starts_at, readers)
SELECT coalesce(max(epoch), 0) + 1, %(first)s, clock_timestamp(), coalesce(%(readers)s::bytea, '')
FROM group_key HAVING count(*) = 0
    OR (array_agg(readers ORDER BY epoch DESC))[1] <> %(readers)s::bytea;
DELETE FROM group_key
WHERE epoch < (SELECT max(epoch) FROM group_key WHERE starts_at <= clock_timestamp());
INSERT INTO group_key (epoch, secret, starts_at, readers)
SELECT epoch + 1, %(next)s, greatest(
    starts_at + %(epoch_s)s * interval '1 second',
    clock_timestamp() + %(notice_s)s * interval '1 second'
), readers
FROM group_key g
WHERE epoch = (SELECT max(epoch) FROM group_key) AND starts_at <= clock_timestamp();
"""

_READ = """\
SELECT epoch, secret, starts_at, extract(epoch FROM starts_at - clock_timestamp())::float8
FROM group_key ORDER BY epoch
"""


async def keep(connection: Connection, readers: bytes | None) -> list[GroupKey]:
    """Return the key in use and the next one; make those that are missing.

    `readers` is a hash of what decides who may read. If it is another one than before, a new epoch
    begins at once, with a new key. None changes nothing.
    """
    rows = await connection.execute(
        _KEEP + _READ,
        {
            "readers": readers,
            "first": os.urandom(SECRET_BYTES),
            "next": os.urandom(SECRET_BYTES),
            "epoch_s": GROUP_KEY_EPOCH_S,
            "notice_s": NOTICE_S,
        },
    )
    return [_key(row) for row in rows]


async def read(connection: Connection) -> list[GroupKey]:
    """Return the key in use and the next one, in this order; none if nothing is sealed."""
    return [_key(row) for row in await connection.execute(_READ)]


def _key(row: Row) -> GroupKey:
    epoch, secret, starts_at, wait_s = row
    return GroupKey(epoch, bytes(secret), starts_at.astimezone(datetime.UTC), wait_s)
