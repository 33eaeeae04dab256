"""Resumable uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("task_hash", sa.String(64), sa.ForeignKey("tasks.task_hash"), nullable=False),
        sa.Column("update_id", sa.String(32), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("public", sa.String(64), nullable=False),
        sa.Column("length", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53), nullable=False),
        sa.Column("receipt", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
    )
    op.create_index("uploads_by_client", "uploads", ["task_hash", "client"])
    op.create_index("uploads_by_expiry", "uploads", ["expires"])


def downgrade() -> None:
    op.drop_table("uploads")
