"""The board of key ceremonies: one post of each holder and phase, for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import payload_hash
from he_protocol.problems import CEREMONY_CONFLICT, NOT_FOUND
from he_server.rules.records import PostRecord
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.schema import board


@dataclass(frozen=True)
class BoardStore:
    """State changes and reads of `board`."""

    database: Database

    async def add(self, task: str, phase: str, post: PostRecord) -> bool:
        """Add one holder's post. False when the same message is there already.

        Raises `ceremony-conflict` when another one is.
        """
        try:
            async with self.database.write() as connection:
                await connection.execute(
                    insert(board).values(
                        task_hash=task,
                        phase=phase,
                        holder=post.holder,
                        message=post.message,
                        size=post.size,
                        blob=post.blob,
                    )
                )
                said = {"phase": phase, "holder": post.holder, "message": payload_hash(post.message).hex()}
                await audit.append(connection, "board-post", task, 0, **said)
        except IntegrityError:
            before = await self.post(task, phase, post.holder)
            check_same_post(before.message, post.message, phase)
            return False
        return True

    async def posts(self, task: str, phase: str) -> tuple[PostRecord, ...]:
        """All posts of one phase, by holder."""
        query = select(board).where(board.c.task_hash == task, board.c.phase == phase).order_by(board.c.holder)
        async with self.database.read() as connection:
            return tuple(_post_record(row) for row in await connection.execute(query))

    async def post(self, task: str, phase: str, holder: str) -> PostRecord:
        """One post. Raises `not-found`."""
        query = select(board).where(board.c.task_hash == task, board.c.phase == phase, board.c.holder == holder)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, f"{holder} has not posted its {phase}")
        return _post_record(row)


def check_same_post(before: str, offered: str, phase: str) -> None:
    """Raises `ceremony-conflict` when a holder posts something else than before."""
    if before != offered:
        raise ProblemError(CEREMONY_CONFLICT, f"this holder posted another {phase} before")


def _post_record(row: Row[Any]) -> PostRecord:
    return PostRecord(row.holder, row.message, row.size, row.blob)
