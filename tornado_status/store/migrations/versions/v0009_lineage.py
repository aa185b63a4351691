"""The lineage of the log: from which other one it goes on, and after which number."""

from alembic import op

revision = "g2_0009"  # older servers name the columns `stream`
down_revision = "0008"
branch_labels = None
depends_on = None

SCHEMA = """
ALTER TABLE head RENAME COLUMN stream TO log_id;
ALTER TABLE alert RENAME COLUMN stream TO log_id;
ALTER TABLE alert_message RENAME COLUMN stream TO log_id;

-- One row for each log that goes on from another: it has the entries of parent up to number fork.
CREATE TABLE log_step (
    log_id uuid PRIMARY KEY,
    parent uuid NOT NULL,
    fork   bigint NOT NULL,
    at     timestamptz NOT NULL
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute(
        "DROP TABLE log_step;"
        " ALTER TABLE alert_message RENAME COLUMN log_id TO stream;"
        " ALTER TABLE alert RENAME COLUMN log_id TO stream;"
        " ALTER TABLE head RENAME COLUMN log_id TO stream"
    )
