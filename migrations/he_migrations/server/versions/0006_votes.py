"""What key holders say about manifests; opening numbers; updates that were left out; tasks that take no updates."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("opened", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("state", sa.String(16), nullable=False, server_default="open"))
    op.add_column("rounds", sa.Column("opening", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("excluded", sa.Text, nullable=False, server_default="[]"))
    op.create_table(
        "answers",
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("manifest_hash", sa.String(64), nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("problem", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("received", sa.Float(53), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("answers")
    op.drop_column("rounds", "excluded")
    op.drop_column("rounds", "opening")
    op.drop_column("tasks", "state")
    op.drop_column("tasks", "opened")
