"""Presence: who is offline, how far the log was looked through, each user's chain and devices."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = """
-- offline: the newest entry of the user's log is `offline`.
-- devices: the user's other certificates, the newest first; written only when that changes.
-- No column has an index, so that a check-in and a sweep are HOT updates.
ALTER TABLE user_status
    ADD COLUMN first_seen timestamptz,
    ADD COLUMN offline    boolean NOT NULL DEFAULT false,
    ADD COLUMN devices    jsonb;

CREATE FUNCTION user_device(
    issuer text, serial text, last_seen timestamptz, client_ip inet, client_port integer
) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'issuer', issuer, 'serial', serial,
        'client_ip', host(client_ip), 'client_port', client_port,
        'microseconds', (extract(epoch FROM last_seen) * 1000000)::bigint
    )
$$;

-- Of these devices each one once, but not the one of this certificate; the eight newest.
CREATE FUNCTION other_devices(devices jsonb, issuer text, serial text) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(d ORDER BY (d->>'microseconds')::bigint DESC) FROM (
        SELECT d FROM (
            SELECT DISTINCT ON (d->>'issuer', d->>'serial') d
            FROM jsonb_array_elements(devices) e(d)
            WHERE d->>'serial' IS NOT NULL
              AND NOT (d->>'issuer' = $2 AND d->>'serial' = $3)
            ORDER BY d->>'issuer', d->>'serial', (d->>'microseconds')::bigint DESC
        ) each
        ORDER BY (d->>'microseconds')::bigint DESC LIMIT 8
    ) newest
$$;

-- previous: the number of the same user's entry before this one. One user's history is a walk along
-- it by the primary key. An index on the e-mail would cost every check-in a second, random page.
-- The column last_seen is set if it is not `at`, in entries that are no check-in.
ALTER TABLE check_in
    ADD COLUMN previous  bigint,
    ADD COLUMN last_seen timestamptz;

-- swept: the sweep has seen all entries up to this number, and only these may be pruned.
-- The time grace_until: no server was running, and no user is declared offline before it.
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
        "ALTER TABLE user_status DROP COLUMN first_seen, DROP COLUMN offline,"
        " DROP COLUMN devices; DROP FUNCTION user_device, other_devices"
    )
