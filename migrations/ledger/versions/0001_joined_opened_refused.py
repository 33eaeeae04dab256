"""Joined tasks, accepted manifests, opened updates and refusals."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("server_url", sa.Text, nullable=False),
        sa.Column("joined", sa.Float, nullable=False),
    )
    op.create_table(
        "openings",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("manifest_hash", sa.LargeBinary, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("updates", sa.Integer, nullable=False),
        sa.Column("decided", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(["task_hash"], ["tasks.task_hash"], name="openings_task"),
    )
    op.create_table(
        "opened_updates",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("update_id", sa.LargeBinary, primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_hash", "round"], ["openings.task_hash", "openings.round"], name="opened_updates_opening"
        ),
    )
    op.create_table(
        "refusals",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("manifest_hash", sa.LargeBinary, primary_key=True),
        sa.Column("problem", sa.Text, primary_key=True),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in ("refusals", "opened_updates", "openings", "tasks"):
        op.drop_table(table)
