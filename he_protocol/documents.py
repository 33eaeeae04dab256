"""The REST documents that are not signed, and the paths under which everything is found."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import msgspec

from he_protocol.messages import Positive, SignedUpdate

Stage = Literal["screen", "vote", "release"]
"""What a round asks of a key holder: its opinion of the updates, its vote for the manifest, its share."""
RoundState = Literal["open", "closed", "opening", "published", "failed"]

RECENT_ROUNDS = 50
"""Rounds in a list of them."""


class Document(msgspec.Struct, frozen=True):
    """Base of answers. Readers ignore members they do not know, so that servers can grow."""


class Failure(Document, frozen=True):
    """Why a round failed: a problem URN and what happened."""

    type: str
    detail: str


TaskState: TypeAlias = Literal["open", "paused", "closed"]
"""What a server's operator wants of a task. The rounds under way of a paused or closed one are still opened."""


class TaskStatus(Document, frozen=True):
    """One task: the authority's signed configuration and where it stands."""

    task: str
    name: str
    config: str
    keys_ready: bool
    model_version: int
    round: int
    state: TaskState = "open"


class TaskList(Document, frozen=True):
    tasks: tuple[TaskStatus, ...]


class DroppedBucket(Document, frozen=True):
    """A bucket of a published round that did not open: its updates (ids in hex) are in no sum."""

    bucket: int
    updates: tuple[str, ...]
    failure: Failure


class ExcludedUpdate(Document, frozen=True):
    """An update (id in hex) that was left out of its round's manifest, and why."""

    update: str
    failure: Failure


class RoundMetric(Document, frozen=True):
    """What the clients of a published round reported of one metric, as their sum tells it, with its noise.

    reports: how many reported, give or take `reports_std`. values: the mean, or a histogram's mean shares; empty where
    too few reported to tell. std: the standard deviation of the noise in each of them.
    """

    name: str
    reports: float
    reports_std: float
    values: tuple[float, ...]
    std: float


class HolderStatus(Document, frozen=True):
    """What one key holder has said about a round that is (to be) opened: "" is nothing yet.

    `problem` is the slug of what it refused the round for. `at` in Unix seconds.
    """

    holder: str
    said: Literal["", "screened", "voted", "released", "refused"]
    problem: str = ""
    detail: str = ""
    at: float = 0.0


class RoundStatus(Document, frozen=True):
    """One round; times are Unix seconds, 0 where not reached. `seconds` has one entry per server stage.

    opening: its number among the sums that the epoch opens, 0 while it has none.
    """

    round: int
    state: RoundState
    updates: int
    opened_at: float
    deadline: float
    version: int
    shares: int
    failure: Failure | None
    dropped: tuple[DroppedBucket, ...]
    seconds: dict[str, float]
    opening: int = 0
    excluded: tuple[ExcludedUpdate, ...] = ()
    committee: tuple[HolderStatus, ...] = ()
    metrics: tuple[RoundMetric, ...] = ()


class UpdateStatus(Document, frozen=True):
    """Where an acknowledged update is; with a failure it is in no sum, though its round may be published."""

    update_id: str
    round: int
    state: RoundState
    version: int
    failure: Failure | None


class UpdateReceipt(Document, frozen=True):
    """Answer to an upload: the server's signed receipt and the round that the update is in."""

    receipt: str
    round: int


class Waiting(Document, frozen=True):
    """A round that waits for something of this holder."""

    round: Positive
    stage: Stage


class PendingOpenings(Document, frozen=True):
    """Everything that waits for this holder, oldest round first."""

    rounds: tuple[Waiting, ...]

    @property
    def etag(self) -> str:
        """What the server compares: a holder that has done something knows the list that is left."""
        return f'"{hashlib.sha256(msgspec.json.encode(self)).hexdigest()}"'


class Opening(Document, frozen=True):
    """What a round asks of its key holders now: the signed manifest, holders' votes for it so far, and the newest
    `RevocationList` that the server has, if any."""

    stage: Stage
    manifest: str
    votes: tuple[str, ...] = ()
    revocations: str = ""


class Heads(Document, frozen=True):
    """Every update's signed head, in the manifest's order."""

    updates: tuple[SignedUpdate, ...]


class BoardEntry(Document, frozen=True):
    """One post of the key ceremony; its body is fetched on its own."""

    holder: str
    message: str
    size: int


class Board(Document, frozen=True):
    phase: str
    posts: tuple[BoardEntry, ...]


class AuditStatus(Document, frozen=True):
    """The signed `AuditHead` of the server's audit log: with a stored one, a later rewrite of the log can be proved."""

    head: str


class Revoked(Document, frozen=True):
    """The newest `RevocationList` that the server has, "" while there is none."""

    revocations: str
