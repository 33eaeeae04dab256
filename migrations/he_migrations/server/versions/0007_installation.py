"""The database gets an id, which the data directory that belongs to it keeps, too."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    installation = op.create_table("installation", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(installation, [{"id": secrets.token_hex(16)}])


def downgrade() -> None:
    op.drop_table("installation")
