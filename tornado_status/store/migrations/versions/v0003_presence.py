"""Presence: who is offline, how far the log was looked through for it, and each user's chain."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
-- offline: the newest entry of the user's log is `offline`. Neither column has an index, so that a
-- check-in and a sweep are HOT updates.
ALTER TABLE user_status
    ADD COLUMN first_seen timestamptz,
    ADD COLUMN offline    boolean NOT NULL DEFAULT false;

-- previous: the number of the same user's entry before this one. One user's history is a walk along
-- it by the primary key; an index on the e-mail would cost every check-in a second, random page.
-- last_seen: only where it is not `at`, in entries that are no check-in.
ALTER TABLE check_in
    ADD COLUMN previous  bigint,
    ADD COLUMN last_seen timestamptz;

-- swept: all entries up to this number were judged, and only these may be pruned. grace_until: the
-- servers were away, so nobody is declared offline before.
ALTER TABLE head
    ADD COLUMN swept       bigint NOT NULL DEFAULT 0,
    ADD COLUMN swept_at    timestamptz,
    ADD COLUMN grace_until timestamptz;

UPDATE user_status u SET first_seen = c.at FROM check_in c
WHERE c.event = 'new' AND c.email = u.email;

UPDATE check_in c SET previous = p.previous
FROM (SELECT seq, lag(seq) OVER (PARTITION BY email ORDER BY seq) AS previous FROM check_in) p
WHERE p.seq = c.seq AND p.previous IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute(
        "ALTER TABLE head DROP COLUMN swept, DROP COLUMN swept_at, DROP COLUMN grace_until;"
        "ALTER TABLE check_in DROP COLUMN previous, DROP COLUMN last_seen;"
        "ALTER TABLE user_status DROP COLUMN first_seen, DROP COLUMN offline"
    )
