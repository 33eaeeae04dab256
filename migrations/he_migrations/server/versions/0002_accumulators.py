"""Accumulators: updates are folded while they arrive; and the buckets of a round."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rounds", sa.Column("dropped", sa.Text, nullable=False, server_default="[]"))
    op.add_column("updates", sa.Column("position", sa.Integer, nullable=False, server_default="0"))
    op.add_column("updates", sa.Column("bucket", sa.Integer, nullable=False, server_default="0"))
    op.add_column("updates", sa.Column("accumulator", sa.Integer, nullable=False, server_default="0"))
    op.add_column("updates", sa.Column("folded", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("updates_by_blob", "updates", ["blob"])
    op.create_index("updates_to_fold", "updates", ["round_id", "folded", "bucket"])
    op.create_table(
        "accumulators",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), nullable=False),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.Column("updates", sa.Integer, nullable=False),
        sa.Column("lease_token", sa.String(32), nullable=False),
        sa.Column("lease_until", sa.Float(53), nullable=False),
    )
    op.create_index("accumulators_by_bucket", "accumulators", ["round_id", "bucket"])


def downgrade() -> None:
    op.drop_table("accumulators")
    op.drop_index("updates_to_fold", "updates")
    op.drop_index("updates_by_blob", "updates")
    for column in ("folded", "accumulator", "bucket", "position"):
        op.drop_column("updates", column)
    op.drop_column("rounds", "dropped")
