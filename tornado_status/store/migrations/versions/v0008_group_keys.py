"""The secrets of sealed announcements, which servers and readers share."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = """
-- The epoch that is in use, and the next. The column readers is a hash of what decides who may
-- read. When it changes, a new epoch begins at once.
CREATE TABLE group_key (
    epoch     bigint PRIMARY KEY,
    secret    bytea NOT NULL,
    starts_at timestamptz NOT NULL,
    readers   bytea NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE group_key")
