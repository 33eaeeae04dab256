"""Tasks, rounds, updates, shares, models and the ceremony board."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("task_hash", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
    )
    _rounds()
    _bytes_of_rounds()
    op.create_table(
        "models",
        sa.Column("task_hash", sa.String(64), sa.ForeignKey("tasks.task_hash"), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), nullable=True, unique=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
    )
    op.create_table(
        "board",
        sa.Column("task_hash", sa.String(64), sa.ForeignKey("tasks.task_hash"), primary_key=True),
        sa.Column("phase", sa.String(16), primary_key=True),
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
    )


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("task_hash", sa.String(64), sa.ForeignKey("tasks.task_hash"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("updates", sa.Integer, nullable=False),
        sa.Column("opened_at", sa.Float(53), nullable=False),
        sa.Column("deadline", sa.Float(53), nullable=False),
        sa.Column("closed_at", sa.Float(53), nullable=False),
        sa.Column("opening_deadline", sa.Float(53), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("manifest_hash", sa.String(64), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("failure_type", sa.String(64), nullable=False),
        sa.Column("failure_detail", sa.Text, nullable=False),
        sa.Column("seconds", sa.Text, nullable=False),
        sa.Column("tried", sa.Integer, nullable=False),
        sa.Column("lease_token", sa.String(32), nullable=False),
        sa.Column("lease_until", sa.Float(53), nullable=False),
        sa.UniqueConstraint("task_hash", "number", name="one_number"),
    )
    only_open = sa.text("state = 'open'")
    op.create_index(
        "one_open_round", "rounds", ["task_hash"], unique=True, sqlite_where=only_open, postgresql_where=only_open
    )
    op.create_index("rounds_by_state", "rounds", ["state"])


def _bytes_of_rounds() -> None:
    op.create_table(
        "updates",
        sa.Column("task_hash", sa.String(64), sa.ForeignKey("tasks.task_hash"), primary_key=True),
        sa.Column("update_id", sa.String(32), primary_key=True),
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), nullable=False),
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("header", sa.Text, nullable=False),
        sa.Column("header_hash", sa.String(64), nullable=False),
        sa.Column("credential", sa.Text, nullable=False),
        sa.Column("base_version", sa.BigInteger, nullable=False),
        sa.Column("received", sa.Float(53), nullable=False),
        sa.Column("receipt", sa.Text, nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
        sa.UniqueConstraint("round_id", "client", name="one_update_per_client"),
    )
    op.create_table(
        "shares",
        sa.Column("round_id", sa.Integer, sa.ForeignKey("rounds.id"), primary_key=True),
        sa.Column("holder", sa.String(64), primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("received", sa.Float(53), nullable=False),
        sa.Column("blob", sa.String(64), nullable=False),
    )


def downgrade() -> None:
    for table in ("board", "models", "shares", "updates", "rounds", "tasks"):
        op.drop_table(table)
