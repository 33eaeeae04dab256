"""What the server knows, in frozen records, and the documents that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from he_protocol.documents import (
    DroppedBucket,
    ExcludedUpdate,
    Failure,
    HolderStatus,
    RoundMetric,
    RoundState,
    RoundStatus,
    TaskState,
)
from he_protocol.task import Task

Kind: TypeAlias = Literal["screening", "vote", "objection"]
SAID: dict[Kind, Literal["screened", "voted", "refused"]] = {
    "screening": "screened",
    "vote": "voted",
    "objection": "refused",
}


@dataclass(frozen=True)
class AnswerRecord:
    """What one holder said about a round's manifest (its hash in hex); `problem` and `detail` of an objection."""

    holder: str
    kind: Kind
    manifest_hash: str
    token: str
    problem: str
    detail: str
    received: float


@dataclass(frozen=True)
class RoundRecord:
    """One round, with the number of shares that it has."""

    id: int
    task: str
    number: int
    state: RoundState
    updates: int
    opened_at: float
    deadline: float
    closed_at: float
    opening_deadline: float
    manifest: str
    manifest_hash: str
    version: int
    failure_type: str
    failure_detail: str
    seconds: dict[str, float]
    tried: int
    lease_until: float
    dropped: tuple[DroppedBucket, ...]
    opening: int
    excluded: tuple[ExcludedUpdate, ...]
    metrics: tuple[RoundMetric, ...]
    shares: int

    @property
    def failure(self) -> Failure | None:
        return Failure(self.failure_type, self.failure_detail) if self.failure_type else None

    def failure_of(self, update: UpdateRecord) -> Failure | None:
        """Why an update of this round is in no sum."""
        out = next((one.failure for one in self.excluded if one.update == update.update_id), None)
        return out or self.failure or next((one.failure for one in self.dropped if one.bucket == update.bucket), None)

    def status(self, committee: tuple[HolderStatus, ...] = ()) -> RoundStatus:
        """The public document about this round, with what its key holders said."""
        return RoundStatus(
            round=self.number,
            state=self.state,
            updates=self.updates,
            opened_at=self.opened_at,
            deadline=self.deadline,
            version=self.version,
            shares=self.shares,
            failure=self.failure,
            dropped=self.dropped,
            seconds=self.seconds,
            opening=self.opening,
            excluded=self.excluded,
            metrics=self.metrics,
            committee=committee,
        )


@dataclass(frozen=True)
class UpdateRecord:
    """One acknowledged update; `blob` names its bytes, `bucket` is the one that it is (to be) opened with."""

    update_id: str
    round_id: int
    client: str
    header: str
    header_hash: str
    credential: str
    base_version: int
    received: float
    receipt: str
    blob: str
    position: int
    bucket: int


@dataclass(frozen=True)
class AccumulatorRecord:
    """A running sum of some of a bucket's updates; `blob` names its bytes."""

    bucket: int
    blob: str
    updates: int


@dataclass(frozen=True)
class ShareRecord:
    """One holder's share for one round; `received` in Unix seconds."""

    holder: str
    token: str
    blob: str
    received: float


@dataclass(frozen=True)
class PostRecord:
    """One post on the board of a key ceremony; `size` is in bytes."""

    holder: str
    message: str
    size: int
    blob: str


@dataclass(frozen=True)
class ModelRecord:
    """One published model version; `round_id` is None for the initial model, and for a model that got a further version
    after a round that failed or a recovery."""

    version: int
    round_id: int | None
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """One task and where it stands."""

    task: str
    name: str
    epoch: int
    token: str
    model_version: int
    round: int
    posts: int
    """Of the key ceremony, in all its phases."""
    state: TaskState


@dataclass(frozen=True)
class Accepted:
    """Outcome of an upload. `created` is false for a repeat; `closed` when it filled the round."""

    receipt: str
    round: int
    created: bool
    closed: bool = False


def committee_status(
    task: Task, record: RoundRecord, answers: Sequence[AnswerRecord], shares: Sequence[ShareRecord]
) -> tuple[HolderStatus, ...]:
    """What each holder has said about a round's manifest: of several things the one that counts most now.

    A share comes last of all. Before that, the newest word about the manifest as it is now.
    """
    released = {share.holder: share.received for share in shares}
    found = []
    for holder in task.config.committee.holders:
        mine = [a for a in answers if a.holder == holder.name and a.manifest_hash == record.manifest_hash]
        if holder.name in released:
            found.append(HolderStatus(holder.name, "released", at=released[holder.name]))
        elif mine:
            last = max(mine, key=lambda one: one.received)
            found.append(HolderStatus(holder.name, SAID[last.kind], last.problem, last.detail, last.received))
        else:
            found.append(HolderStatus(holder.name, ""))
    return tuple(found)


def waiting_for(status: RoundStatus) -> str:
    """What key holders said about a round that waits for them."""
    if status.state not in {"closed", "opening"}:
        return ""
    return "; ".join(
        f"{one.holder}: {f'refused ({one.detail})' if one.problem else one.said or 'missing'}"
        for one in status.committee
    )
