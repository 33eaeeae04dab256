"""The server's tables. The schema itself is made by Alembic only; a test keeps the two equal.

Hashes and ids are lower-case hex, as in URLs. Times are Unix seconds, 0 where not reached.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    false,
    text,
)

metadata = MetaData()

# One row: which database this is.
installation = Table("installation", metadata, Column("id", String(32), primary_key=True))

tasks = Table(
    "tasks",
    metadata,
    Column("task_hash", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("token", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("created", Float(53), nullable=False),
    # Opening numbers up to this one were used by a server whose database was lost.
    Column("opened", BigInteger, nullable=False, server_default="0"),
    # What its operator wants of it: open, paused or closed.
    Column("state", String(16), nullable=False, server_default="open"),
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
    # JSON: the `DroppedBucket`s of a published round.
    Column("dropped", Text, nullable=False, server_default="[]"),
    # Its number among the epoch's openings, 0 until it has a manifest.
    Column("opening", BigInteger, nullable=False, server_default="0"),
    # JSON: the `ExcludedUpdate`s that the manifest is without.
    Column("excluded", Text, nullable=False, server_default="[]"),
    # JSON: the `RoundMetric`s of a published round.
    Column("metrics", Text, nullable=False, server_default="[]"),
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
    # Small updates that came together share a blob: this one's place in it.
    Column("position", Integer, nullable=False, server_default="0"),
    Column("bucket", Integer, nullable=False, server_default="0"),
    # The accumulator that it is folded into; 0 until a worker claims it.
    Column("accumulator", Integer, nullable=False, server_default="0"),
    Column("folded", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("round_id", "client", name="one_update_per_client"),
    Index("updates_by_blob", "blob"),
    Index("updates_to_fold", "round_id", "folded", "bucket"),
)

# Running sums of a bucket, one for every worker that folded it at the same time as others.
accumulators = Table(
    "accumulators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("round_id", Integer, ForeignKey("rounds.id"), nullable=False),
    Column("bucket", Integer, nullable=False),
    Column("blob", String(64), nullable=False, default=""),
    Column("updates", Integer, nullable=False, default=0),
    Column("lease_token", String(32), nullable=False, default=""),
    Column("lease_until", Float(53), nullable=False, default=0.0),
    Index("accumulators_by_bucket", "round_id", "bucket"),
)

# Frames that arrive in pieces; the bytes are in a file named by the id.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("task_hash", String(64), ForeignKey("tasks.task_hash"), nullable=False),
    Column("update_id", String(32), nullable=False),
    Column("client", String(64), nullable=False),
    Column("public", String(64), nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False),
    Column("receipt", Text, nullable=False),
    Column("round", Integer, nullable=False),
    # JSON: the refusal of the whole frame.
    Column("problem", Text, nullable=False),
    Index("uploads_by_client", "task_hash", "client"),
    Index("uploads_by_expiry", "expires"),
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

# What key holders said about the manifest of a round: one row for each kind of message, the newest.
answers = Table(
    "answers",
    metadata,
    Column("round_id", Integer, ForeignKey("rounds.id"), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("manifest_hash", String(64), nullable=False),
    Column("token", Text, nullable=False),
    Column("problem", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("received", Float(53), nullable=False),
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

# The authority's newest list, which a transaction of its own replaces.
revocations = Table(
    "revocations",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("token", Text, nullable=False),
    Column("received", Float(53), nullable=False),
)

# Hash-chained; `detail` is a JSON object. Nothing refers to it, and nothing in it is ever changed.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("time", Float(53), nullable=False),
    Column("event", String(32), nullable=False),
    Column("task", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)
