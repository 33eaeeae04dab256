"""The tables of a key holder's ledger. The schema itself is made by Alembic only; a test keeps the two equal.

Primary keys repeat the two rules that matter most: one manifest for each opening number, one opening per update.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKeyConstraint, Index, Integer, LargeBinary, MetaData, Table, Text

metadata = MetaData()
identity = Table("identity", metadata, Column("ledger", LargeBinary, primary_key=True))
tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("token", Text, nullable=False),
    Column("server_url", Text, nullable=False),
    Column("joined", Float, nullable=False),
    Column("destroyed", Float),
    Column("left", Float),
)
votes = Table(
    "votes",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("opening", Integer, primary_key=True),
    Column("manifest_hash", LargeBinary, nullable=False),
    Column("manifest", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("model_version", Integer, nullable=False),
    Column("formed", Integer, nullable=False),
    Column("updates", Integer, nullable=False),
    Column("decided", Float, nullable=False),
    Column("settled", Float),
    ForeignKeyConstraint(["task_hash"], ["tasks.task_hash"], name="votes_task"),
)
voted_updates = Table(
    "voted_updates",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("update_id", LargeBinary, primary_key=True),
    Column("opening", Integer, nullable=False),
    Column("client", Text, nullable=False),
    Column("base_version", Integer, nullable=False),
    ForeignKeyConstraint(["task_hash", "opening"], ["votes.task_hash", "votes.opening"], name="voted_updates_vote"),
    Index("voted_bases", "task_hash", "client", "base_version"),
)
refusals = Table(
    "refusals",
    metadata,
    Column("task_hash", LargeBinary, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("manifest_hash", LargeBinary, primary_key=True),
    Column("problem", Text, primary_key=True),
    Column("manifest", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("seen", Float, nullable=False),
)
revocations = Table(
    "revocations",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
)
