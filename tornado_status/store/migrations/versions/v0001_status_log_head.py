"""Users' status, the log of check-ins, and the one head row that numbers them."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
-- One row a user. No index on anything that a check-in changes, and room in each page: every
-- update is a HOT update, whatever the number of users. A user who is enrolled and never checked
-- in has no seq.
CREATE TABLE user_status (
    email       text PRIMARY KEY,
    seq         bigint,
    last_seen   timestamptz,
    client_ip   inet,
    client_port integer,
    issuer      text,
    serial      text
) WITH (fillfactor = 70);

-- The log, append-only. seq is gapless and in commit order over all servers. It comes from head: a
-- sequence would have holes and commit out of order.
CREATE TABLE check_in (
    seq         bigint PRIMARY KEY,
    at          timestamptz NOT NULL,
    event       text NOT NULL,
    email       text NOT NULL,
    client_ip   inet,
    client_port integer,
    issuer      text,
    serial      text
);

-- One row. Every writer of the log locks it first. system_identifier and timeline_id identify the
-- database. If they change, numbers may be reused, and a new log begins.
CREATE TABLE head (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seq               bigint NOT NULL,
    stream            uuid NOT NULL,
    at                timestamptz NOT NULL,
    system_identifier bigint,
    timeline_id       integer
);

INSERT INTO head (seq, stream, at) VALUES (0, gen_random_uuid(), clock_timestamp());
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE head, check_in, user_status")
