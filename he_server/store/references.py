"""Which blobs the rows of the database refer to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, select

from he_server.blobs.keys import (
    accumulator_blob,
    key_blob,
    model_blob,
    optimiser_blob,
    post_blob,
    share_blob,
    sum_blob,
    total_blob,
    update_blob,
)
from he_server.store.engine import Database
from he_server.store.schema import accumulators, board, models, rounds, shares, updates


@dataclass(frozen=True)
class ReferenceStore:
    """Reads for garbage collection."""

    database: Database

    async def of_rounds(self) -> frozenset[str]:
        """Names of all blobs that rounds still need, among those that end with their round."""
        folding, live = ("open", "closed"), ("open", "closed", "opening")
        wanted: tuple[tuple[Callable[[str], str], Table, ColumnElement[bool]], ...] = (
            (update_blob, updates, rounds.c.state.in_(folding)),  # folded ones may have to be taken out again
            (key_blob, updates, rounds.c.state.in_(live)),
            (accumulator_blob, accumulators, rounds.c.state.in_(folding)),
            (share_blob, shares, rounds.c.state.in_(live)),
        )
        names: set[str] = set()
        async with self.database.read() as connection:
            for name, table, needed in wanted:
                query = select(table.c.blob).join(rounds, rounds.c.id == table.c.round_id).where(needed)
                names.update(name(blob) for blob in (await connection.execute(query)).scalars())
            query = (
                select(updates.c.round_id, updates.c.bucket)
                .distinct()
                .join(rounds, rounds.c.id == updates.c.round_id)
                .where(rounds.c.state.in_(("closed", "opening")))
            )
            names.update(total_blob(*row) for row in await connection.execute(query))
        return frozenset(names)

    async def of_tasks(self) -> frozenset[str]:
        """Names of all blobs that belong to model versions and posts, for as long as their tasks are kept."""
        names: set[str] = set()
        async with self.database.read() as connection:
            for row in await connection.execute(select(models.c.task_hash, models.c.sha256, models.c.round_id)):
                names |= {model_blob(row.task_hash, row.sha256), optimiser_blob(row.task_hash, row.sha256)}
                names |= {sum_blob(row.task_hash, row.round_id)} if row.round_id is not None else set()
            posts = await connection.execute(select(board.c.task_hash, board.c.blob))
            names.update(post_blob(post.task_hash, post.blob) for post in posts)
        return frozenset(names)
