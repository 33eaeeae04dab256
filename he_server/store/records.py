"""What the store hands out: frozen rows, and the documents that are made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, get_args

import msgspec
from sqlalchemy import Row

from he_protocol.api import DroppedBucket, Failure, RoundState, RoundStatus


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
    shares: int

    @property
    def failure(self) -> Failure | None:
        return Failure(self.failure_type, self.failure_detail) if self.failure_type else None

    def failure_of(self, bucket: int) -> Failure | None:
        """Why the updates of one bucket are in no sum."""
        return self.failure or next((one.failure for one in self.dropped if one.bucket == bucket), None)

    def status(self) -> RoundStatus:
        """The public document about this round."""
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
    """One holder's share for one round."""

    holder: str
    token: str
    blob: str


@dataclass(frozen=True)
class PostRecord:
    """One post on the board of a key ceremony; `size` is in bytes."""

    holder: str
    message: str
    size: int
    blob: str


@dataclass(frozen=True)
class ModelRecord:
    """One published model version; `round_id` is None for the initial model."""

    version: int
    round_id: int | None
    sha256: str


@dataclass(frozen=True)
class TaskRecord:
    """One task and where it stands."""

    task: str
    name: str
    token: str
    model_version: int
    round: int
    confirmations: int


@dataclass(frozen=True)
class Accepted:
    """Outcome of an upload. `created` is false for a repeat; `closed` when it filled the round."""

    receipt: str
    round: int
    created: bool
    closed: bool = False


def round_record(row: Row[Any]) -> RoundRecord:
    """A round from all its columns and `shares`."""
    state: RoundState = next(name for name in get_args(RoundState) if name == row.state)
    return RoundRecord(
        id=row.id,
        task=row.task_hash,
        number=row.number,
        state=state,
        updates=row.updates,
        opened_at=row.opened_at,
        deadline=row.deadline,
        closed_at=row.closed_at,
        opening_deadline=row.opening_deadline,
        manifest=row.manifest,
        manifest_hash=row.manifest_hash,
        version=row.version,
        failure_type=row.failure_type,
        failure_detail=row.failure_detail,
        seconds=json.loads(row.seconds),
        tried=row.tried,
        lease_until=row.lease_until,
        dropped=msgspec.json.decode(row.dropped, type=tuple[DroppedBucket, ...]),
        shares=row.shares,
    )


def update_record(row: Row[Any]) -> UpdateRecord:
    """An update from all its columns."""
    return UpdateRecord(
        update_id=row.update_id,
        round_id=row.round_id,
        client=row.client,
        header=row.header,
        header_hash=row.header_hash,
        credential=row.credential,
        base_version=row.base_version,
        received=row.received,
        receipt=row.receipt,
        blob=row.blob,
        position=row.position,
        bucket=row.bucket,
    )
