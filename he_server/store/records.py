"""Records from the rows that the database answers."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
from sqlalchemy import Row, RowMapping

from he_protocol.documents import DroppedBucket, ExcludedUpdate, RoundMetric, RoundState
from he_server.rules.records import AnswerRecord, Kind, RoundRecord, UpdateRecord


def answer_record(row: RowMapping) -> AnswerRecord:
    """An answer from its columns; its token where that was asked for."""
    kind: Kind = next(name for name in get_args(Kind) if name == row["kind"])
    return AnswerRecord(
        row["holder"],
        kind,
        row["manifest_hash"],
        row.get("token", ""),
        row["problem"],
        row["detail"],
        row["received"],
    )


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
        metrics=msgspec.json.decode(row.metrics, type=tuple[RoundMetric, ...]),
        opening=row.opening,
        excluded=msgspec.json.decode(row.excluded, type=tuple[ExcludedUpdate, ...]),
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
