"""Presence marks: how old the log's entries are, by a clock that only goes forward."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = """
-- For how long servers have watched the log, by their own clocks. It stands still while no server
-- runs, and a change of the database's time of day does not move it.
ALTER TABLE head ADD COLUMN watched_ms bigint NOT NULL DEFAULT 0;

-- At watched_ms the log ended with seq, and the next event was to get the time `at` or a later one.
CREATE TABLE presence_mark (
    watched_ms bigint PRIMARY KEY,
    seq        bigint NOT NULL,
    at         timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE presence_mark; ALTER TABLE head DROP COLUMN watched_ms")
