"""Shares of key holders: one for each round and holder, which no other replaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import payload_hash
from he_protocol.messages import Share
from he_protocol.problems import NOT_FOUND, WRONG_SHARE, WRONG_STATE
from he_protocol.task import Task
from he_server.rules.records import ShareRecord
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.schema import rounds, shares


@dataclass(frozen=True)
class ShareStore:
    """State changes and reads of `shares`."""

    database: Database

    async def add(
        self, task: Task, share: Share, token: str, blob: str, now: float, check_kept: Callable[[], Awaitable[None]]
    ) -> bool:
        """Record a holder's share whose bytes are durable under `blob`; False for the same one again.

        Raises `not-found`, `wrong-state`, `wrong-share` when the holder sent another one before, or what `check_kept`
        raises when the blob is gone.
        """
        async with self.database.write() as connection:
            query = select(rounds.c.id, rounds.c.state).where(
                rounds.c.task_hash == task.id, rounds.c.number == share.round
            )
            row = (await connection.execute(query.with_for_update())).one_or_none()
            if row is None:
                raise ProblemError(NOT_FOUND, "no such round", got=share.round)
            if await _same_share(connection, row.id, share.holder, token):
                return False
            if row.state != "opening":
                raise ProblemError(WRONG_STATE, "the round does not wait for shares", expected="opening", got=row.state)
            await check_kept()
            await connection.execute(
                insert(shares).values(round_id=row.id, holder=share.holder, token=token, received=now, blob=blob)
            )
            said = {"holder": share.holder, "share": payload_hash(token).hex()}
            await audit.append(connection, "share-accepted", task.id, share.round, **said)
            return True

    async def has(self, round_id: int, holder: str, token: str) -> bool:
        """Whether this very share is recorded. Raises `wrong-share` when another one of the holder is."""
        async with self.database.read() as connection:
            return await _same_share(connection, round_id, holder, token)

    async def of_round(self, round_id: int) -> tuple[ShareRecord, ...]:
        """The shares of one round, by holder."""
        query = select(shares).where(shares.c.round_id == round_id).order_by(shares.c.holder)
        async with self.database.read() as connection:
            found = await connection.execute(query)
            return tuple(ShareRecord(row.holder, row.token, row.blob, row.received) for row in found)


async def _same_share(connection: AsyncConnection, round_id: int, holder: str, token: str) -> bool:
    query = select(shares.c.token).where(shares.c.round_id == round_id, shares.c.holder == holder)
    before = (await connection.execute(query)).scalar_one_or_none()
    if before is None:
        return False
    if payload_hash(before) != payload_hash(token):
        raise ProblemError(
            WRONG_SHARE,
            f"{holder} released another share for this round before",
            expected=payload_hash(before).hex(),
            got=payload_hash(token).hex(),
        )
    return True
