"""Accumulators of the rounds: which worker folds which updates into which, each exactly once."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_STATE
from he_server.rules.records import AccumulatorRecord
from he_server.store.engine import Database
from he_server.store.schema import accumulators, rounds, updates

FOLD_LIMIT = 64
"""Updates in one fold; as many files are open at once."""


@dataclass(frozen=True)
class Backlog:
    """Updates of a round that are in no accumulator yet: how many there are, how many of each bucket nobody is
    folding right now, and when the first of those came."""

    unfolded: int
    waiting: dict[int, int]
    oldest: float


class Claimed(NamedTuple):
    """An update to fold: number `position` in `blob`."""

    update_id: str
    blob: str
    position: int


@dataclass(frozen=True)
class Fold:
    """An accumulator that one worker may replace, under `token`, by its sum with the updates that it claimed.

    `blob` is empty while the accumulator is zero.
    """

    accumulator: int
    blob: str
    updates: tuple[Claimed, ...]
    token: str


@dataclass(frozen=True)
class FoldingStore:
    """State changes and reads of `accumulators`."""

    database: Database

    async def backlog(self, round_id: int, now: float) -> Backlog:
        """What is left to fold of a round."""
        free = or_(updates.c.accumulator == 0, accumulators.c.lease_until <= now)
        query = (
            select(updates.c.bucket, func.count(), func.count().filter(free), func.min(updates.c.received).filter(free))
            .select_from(updates.outerjoin(accumulators, accumulators.c.id == updates.c.accumulator))
            .where(updates.c.round_id == round_id, updates.c.folded.is_(False))
            .group_by(updates.c.bucket)
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        waiting = {bucket: count for bucket, _, count, _ in rows if count}
        oldest = min((first for *_, first in rows if first is not None), default=now)
        return Backlog(sum(row[1] for row in rows), waiting, oldest)

    async def begin(self, round_id: int, bucket: int, now: float, seconds: float) -> Fold | None:
        """Lease an accumulator of a bucket for `seconds`, and claim updates for it.

        A free accumulator comes before a new one, and what a dead worker claimed for it comes with it.
        None when there is nothing to fold (any more).
        """
        async with self.database.write() as connection:
            folding = select(rounds.c.id).where(rounds.c.id == round_id, rounds.c.state.in_(("open", "closed")))
            if (await connection.execute(folding.with_for_update())).one_or_none() is None:
                return None
            number, blob = await _free_accumulator(connection, round_id, bucket, now) or (0, "")
            claimed = await _unfolded(connection, round_id, bucket, number) if number else []
            unclaimed = await _unfolded(connection, round_id, bucket, 0)
            claimed = [*claimed, *unclaimed][:FOLD_LIMIT]
            if not claimed:
                return None
            lease = {"lease_token": secrets.token_hex(16), "lease_until": now + seconds}
            if number:
                await connection.execute(update(accumulators).where(accumulators.c.id == number).values(lease))
            else:
                made = insert(accumulators).values(round_id=round_id, bucket=bucket, **lease)
                number = (await connection.execute(made.returning(accumulators.c.id))).scalar_one()
            await connection.execute(
                update(updates)
                .where(updates.c.round_id == round_id, updates.c.update_id.in_([claim.update_id for claim in claimed]))
                .values(accumulator=number)
            )
            return Fold(number, blob, tuple(claimed), str(lease["lease_token"]))

    async def renew(self, fold: Fold, now: float, seconds: float) -> bool:
        """Keep an accumulator for longer; False when it is lost."""
        async with self.database.write() as connection:
            kept = await connection.execute(update(accumulators).where(held(fold)).values(lease_until=now + seconds))
        return kept.rowcount == 1

    async def checkpoint(self, fold: Fold, blob: str, check_kept: Callable[[], Awaitable[None]]) -> None:
        """Replace the accumulator and the claimed updates by the durable sum `blob`, and release the accumulator.

        Nothing changes when `check_kept` raises that the blob is gone. Raises `wrong-state` when another worker took
        the accumulator meanwhile: nothing changes then either.
        """
        async with self.database.write() as connection:
            moved = await connection.execute(
                update(accumulators)
                .where(held(fold))
                .values(
                    blob=blob,
                    updates=accumulators.c.updates + len(fold.updates),
                    lease_token="",
                    lease_until=0.0,
                )
            )
            folded = await connection.execute(
                update(updates)
                .where(
                    updates.c.accumulator == fold.accumulator,
                    updates.c.update_id.in_([claim.update_id for claim in fold.updates]),
                )
                .values(folded=True)
            )
            if (moved.rowcount, folded.rowcount) != (1, len(fold.updates)):
                raise ProblemError(WRONG_STATE, "another worker took the accumulator")
            await check_kept()

    async def folded_blobs(self, blobs: Iterable[str]) -> frozenset[str]:
        """Those of these blobs of updates of which nothing has to be folded any more."""
        asked = frozenset(blobs)
        query = select(updates.c.blob).distinct().where(updates.c.blob.in_(asked), updates.c.folded.is_(False))
        async with self.database.read() as connection:
            return asked - frozenset((await connection.execute(query)).scalars())

    async def accumulators(self, round_id: int) -> tuple[AccumulatorRecord, ...]:
        """The accumulators of one round that hold something."""
        query = (
            select(accumulators)
            .where(accumulators.c.round_id == round_id, accumulators.c.updates > 0)
            .order_by(accumulators.c.id)
        )
        async with self.database.read() as connection:
            return tuple(
                AccumulatorRecord(row.bucket, row.blob, row.updates) for row in await connection.execute(query)
            )


def held(fold: Fold) -> ColumnElement[bool]:
    """Whether the accumulator is still this worker's, and still what it read."""
    return and_(
        accumulators.c.id == fold.accumulator,
        accumulators.c.lease_token == fold.token,
        accumulators.c.blob == fold.blob,
    )


async def _free_accumulator(
    connection: AsyncConnection, round_id: int, bucket: int, now: float
) -> tuple[int, str] | None:
    """Id and blob of an accumulator without a lease; first one whose last worker left claimed updates."""
    left = (
        exists()
        .where(
            updates.c.round_id == accumulators.c.round_id,
            updates.c.folded.is_(False),
            updates.c.accumulator == accumulators.c.id,
        )
        .correlate(accumulators)
    )
    query = (
        select(accumulators.c.id, accumulators.c.blob)
        .where(accumulators.c.round_id == round_id, accumulators.c.bucket == bucket, accumulators.c.lease_until <= now)
        .order_by(left.desc(), accumulators.c.id)
        .limit(1)
        .with_for_update(of=accumulators)
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else (row.id, row.blob)


async def _unfolded(connection: AsyncConnection, round_id: int, bucket: int, accumulator: int) -> list[Claimed]:
    """Updates that an accumulator (0: none) claimed and that are not folded yet."""
    query = (
        select(updates.c.update_id, updates.c.blob, updates.c.position)
        .where(
            updates.c.round_id == round_id,
            updates.c.folded.is_(False),
            updates.c.bucket == bucket,
            updates.c.accumulator == accumulator,
        )
        .limit(FOLD_LIMIT)
    )
    return [Claimed(row.update_id, row.blob, row.position) for row in await connection.execute(query)]
