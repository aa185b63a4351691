"""Alerts: how far each has read the log, and the messages that wait to be delivered."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = """
-- One row an alert. All of the log up to seq is in alert_message, or was of no interest. One server
-- at a time, the holder of the lease, reads on and sends.
CREATE TABLE alert (
    name         text PRIMARY KEY,
    stream       uuid NOT NULL,
    seq          bigint NOT NULL,
    holder       uuid,
    leased_until timestamptz NOT NULL
);

-- id rises with the log. due_at: the event's own moment and the quiet time; next_at: the next
-- attempt. at and last_seen are as in check_in. The event is kept whole: the log may be pruned
-- before the receiver is back.
CREATE TABLE alert_message (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL REFERENCES alert ON DELETE CASCADE,
    stream      uuid NOT NULL,
    seq         bigint NOT NULL,
    event       text NOT NULL,
    email       text NOT NULL,
    at          timestamptz NOT NULL,
    last_seen   timestamptz,
    client_ip   inet,
    client_port integer,
    due_at      timestamptz NOT NULL,
    next_at     timestamptz NOT NULL,
    queued_at   timestamptz NOT NULL DEFAULT now(),
    attempts    integer NOT NULL DEFAULT 0
);

CREATE INDEX alert_message_name_next_at ON alert_message (name, next_at);
-- Of each user the oldest comes first.
CREATE INDEX alert_message_name_email ON alert_message (name, email, id);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE alert_message, alert")
