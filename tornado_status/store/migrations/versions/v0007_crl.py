"""The newest CRL of each CA that was in force: a restart must not take an older one."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE crl (
    ca          bytea PRIMARY KEY,  -- the hash of the CA's name and key
    name        text NOT NULL,
    number      numeric NOT NULL,   -- up to 20 octets; 0 for a CRL without one
    this_update float8 NOT NULL,    -- seconds since the epoch
    entries     bytea NOT NULL      -- the hash of the revoked serial numbers
);
"""


def upgrade() -> None:
    op.execute(SCHEMA)


def downgrade() -> None:
    op.execute("DROP TABLE crl")
