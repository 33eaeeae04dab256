"""A name for each ledger; epochs that were destroyed; openings whose share has left."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table("identity", sa.Column("ledger", sa.LargeBinary, primary_key=True))
    op.bulk_insert(identity, [{"ledger": secrets.token_bytes(16)}])
    op.add_column("tasks", sa.Column("destroyed", sa.Float))
    op.add_column("openings", sa.Column("settled", sa.Float))
    op.execute("UPDATE openings SET settled = decided")


def downgrade() -> None:
    op.drop_column("openings", "settled")
    op.drop_column("tasks", "destroyed")
    op.drop_table("identity")
