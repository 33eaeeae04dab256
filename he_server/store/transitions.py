"""State transitions of a round within the caller's transaction: conditional UPDATEs whose row count is checked."""

from __future__ import annotations

import json

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.documents import RoundState
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND, WRONG_STATE
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import check_transition
from he_server.store.schema import rounds, tasks


async def lock_task(connection: AsyncConnection, task: str) -> None:
    """Serialise everything that touches the open round of a task (SQLite: the transaction already does)."""
    query = select(tasks.c.task_hash).where(tasks.c.task_hash == task).with_for_update()
    if (await connection.execute(query)).one_or_none() is None:
        raise ProblemError(NOT_FOUND, "no such task", got=task)


async def move_round(
    connection: AsyncConnection,
    before: RoundRecord,
    state: RoundState,
    *,
    lease: str = "",
    seconds: dict[str, float] | None = None,
    **columns: str | int | float,
) -> None:
    """Put a round into its next state; with `lease`, only for the worker that holds it.

    Raises `wrong-state` when the move is not in the table, or when the round moved meanwhile.
    """
    check_transition(before.state, state)
    query = update(rounds).where(rounds.c.id == before.id, rounds.c.state == before.state)
    if lease:
        query = query.where(rounds.c.lease_token == lease)
    spent = json.dumps({**before.seconds, **(seconds or {})})
    moved = await connection.execute(
        query.values(state=state, seconds=spent, lease_token="", lease_until=0.0, **columns)
    )
    if moved.rowcount != 1:
        raise ProblemError(WRONG_STATE, f"round {before.number} was moved by another worker", expected=before.state)


async def create_round(connection: AsyncConnection, task: str, number: int, now: float) -> None:
    """Open the next round of a task: the database refuses a second open one."""
    await connection.execute(insert(rounds).values(task_hash=task, number=number, state="open", opened_at=now))
