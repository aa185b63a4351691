"""People: entries of the log that another process wrote, and the settings that servers share."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = """
-- The numbers of entries that no server has announced yet, because a command wrote them. The
-- server that deletes one, under the head lock, announces it.
CREATE TABLE unannounced (seq bigint PRIMARY KEY);

-- presence.interval_s and presence.offline_after_s of the server that connected last.
ALTER TABLE head
    ADD COLUMN interval_s      float8,
    ADD COLUMN offline_after_s float8;
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute(
        "ALTER TABLE head DROP COLUMN interval_s, DROP COLUMN offline_after_s;"
        "DROP TABLE unannounced"
    )
