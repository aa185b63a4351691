"""The announcers' certificates: what readers need to verify datagrams of the last hour."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = """
-- used_at: when a server last said that it signs, or soon will sign, with this key.
CREATE TABLE announcer (
    kid         text PRIMARY KEY,
    certificate text NOT NULL,
    used_at     timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE announcer")
