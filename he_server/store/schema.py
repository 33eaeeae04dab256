"""The server's tables. The schema itself is made by Alembic only; a test keeps the two equal.

Hashes and ids are lower-case hex, as in URLs. Times are Unix seconds, 0 where not reached.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("token", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("created", Float(53), nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_hash", String(64), ForeignKey("tasks.task_hash"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("updates", Integer, nullable=False, default=0),
    Column("opened_at", Float(53), nullable=False),
    Column("deadline", Float(53), nullable=False, default=0.0),
    Column("closed_at", Float(53), nullable=False, default=0.0),
    Column("opening_deadline", Float(53), nullable=False, default=0.0),
    Column("manifest", Text, nullable=False, default=""),
    Column("manifest_hash", String(64), nullable=False, default=""),
    Column("version", BigInteger, nullable=False, default=0),
    Column("failure_type", String(64), nullable=False, default=""),
    Column("failure_detail", Text, nullable=False, default=""),
    Column("seconds", Text, nullable=False, default="{}"),
    # How many shares the last attempt to combine had: it is not repeated until there are more.
    Column("tried", Integer, nullable=False, default=0),
    Column("lease_token", String(32), nullable=False, default=""),
    Column("lease_until", Float(53), nullable=False, default=0.0),
    UniqueConstraint("task_hash", "number", name="one_number"),
    # The database's own promise that a task has one open round.
    Index(
        "one_open_round",
        "task_hash",
        unique=True,
        sqlite_where=text("state = 'open'"),
        postgresql_where=text("state = 'open'"),
    ),
    Index("rounds_by_state", "state"),
)

updates = Table(
    "updates",
    metadata,
    Column("task_hash", String(64), ForeignKey("tasks.task_hash"), primary_key=True),
    Column("update_id", String(32), primary_key=True),
    Column("round_id", Integer, ForeignKey("rounds.id"), nullable=False),
    Column("client", String(64), nullable=False),
    Column("header", Text, nullable=False),
    Column("header_hash", String(64), nullable=False),
    Column("credential", Text, nullable=False),
    Column("base_version", BigInteger, nullable=False),
    Column("received", Float(53), nullable=False),
    Column("receipt", Text, nullable=False),
    Column("blob", String(64), nullable=False),
    UniqueConstraint("round_id", "client", name="one_update_per_client"),
)

shares = Table(
    "shares",
    metadata,
    Column("round_id", Integer, ForeignKey("rounds.id"), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("token", Text, nullable=False),
    Column("received", Float(53), nullable=False),
    Column("blob", String(64), nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("task_hash", String(64), ForeignKey("tasks.task_hash"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("round_id", Integer, ForeignKey("rounds.id"), nullable=True, unique=True),
    Column("sha256", String(64), nullable=False),
    Column("created", Float(53), nullable=False),
)

board = Table(
    "board",
    metadata,
    Column("task_hash", String(64), ForeignKey("tasks.task_hash"), primary_key=True),
    Column("phase", String(16), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("message", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("blob", String(64), nullable=False),
)
