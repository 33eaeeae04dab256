"""A key holder's ledger: joined tasks, votes and the updates they name, refusals, the newest revocation list."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table("identity", sa.Column("ledger", sa.LargeBinary, primary_key=True))
    op.bulk_insert(identity, [{"ledger": secrets.token_bytes(16)}])
    op.create_table(
        "tasks",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("server_url", sa.Text, nullable=False),
        sa.Column("joined", sa.Float, nullable=False),
        sa.Column("destroyed", sa.Float),
        sa.Column("left", sa.Float),
    )
    op.create_table(
        "votes",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("opening", sa.Integer, primary_key=True),
        sa.Column("manifest_hash", sa.LargeBinary, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("model_version", sa.Integer, nullable=False),
        sa.Column("formed", sa.Integer, nullable=False),
        sa.Column("updates", sa.Integer, nullable=False),
        sa.Column("decided", sa.Float, nullable=False),
        sa.Column("settled", sa.Float),
        sa.ForeignKeyConstraint(["task_hash"], ["tasks.task_hash"], name="votes_task"),
    )
    op.create_table(
        "voted_updates",
        sa.Column("task_hash", sa.LargeBinary, primary_key=True),
        sa.Column("update_id", sa.LargeBinary, primary_key=True),
        sa.Column("opening", sa.Integer, nullable=False),
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("base_version", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_hash", "opening"], ["votes.task_hash", "votes.opening"], name="voted_updates_vote"
        ),
    )
    op.create_index("voted_bases", "voted_updates", ["task_hash", "client", "base_version"])
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
    op.create_table(
        "revocations",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("token", sa.Text, nullable=False),
    )


def downgrade() -> None:
    for table in ("revocations", "refusals", "voted_updates", "votes", "tasks", "identity"):
        op.drop_table(table)
