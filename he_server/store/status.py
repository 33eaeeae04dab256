"""The server's backlog: input of admission, metrics and `he-server doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, or_, select, union_all

from he_server.store.engine import Database
from he_server.store.schema import accumulators, rounds, updates

_UNFOLDED = ("open", "closed")
_LIVE = (*_UNFOLDED, "opening")


@dataclass(frozen=True)
class ServerStatus:
    """Rounds that have not ended. Times are Unix seconds, 0 where there is no such round.

    `oldest` is when the first update of the oldest of them may have come, `stuck` counts leases that ran out
    before their holder gave them back, and `overdue` rounds whose deadline has passed: those that still collect, and
    those that wait for key holders longer than a round should take to open.
    """

    rounds: dict[str, int]
    oldest: float
    stuck: int
    overdue: int


@dataclass(frozen=True)
class StatusStore:
    """Reads that sum over all tasks."""

    database: Database

    async def unfolded(self) -> dict[str, int]:
        """How many acknowledged updates of each task are not in a running sum yet."""
        query = (
            select(rounds.c.task_hash, func.count())
            .join(updates, updates.c.round_id == rounds.c.id)
            .where(rounds.c.state.in_(_UNFOLDED), updates.c.folded.is_(False))
            .group_by(rounds.c.task_hash)
        )
        async with self.database.read() as connection:
            return {row[0]: row[1] for row in await connection.execute(query)}

    async def taken(self) -> dict[str, int]:
        """How many updates of each task are in rounds without a final manifest."""
        query = (
            select(rounds.c.task_hash, func.sum(rounds.c.updates))
            .where(rounds.c.state.in_(_UNFOLDED))
            .group_by(rounds.c.task_hash)
        )
        async with self.database.read() as connection:
            return {row[0]: int(row[1]) for row in await connection.execute(query)}

    async def summary(self, now: float) -> ServerStatus:
        """What waits at `now`."""
        live = select(rounds.c.state, func.count()).where(rounds.c.state.in_(_LIVE)).group_by(rounds.c.state)
        oldest = select(func.min(rounds.c.opened_at)).where(rounds.c.state.in_(_LIVE), rounds.c.updates > 0)
        leased = union_all(
            *(select(table.c.lease_until).where(table.c.lease_token != "") for table in (rounds, accumulators))
        ).subquery()
        stuck = select(func.count()).select_from(leased).where(leased.c.lease_until <= now)
        collecting = (rounds.c.state == "open") & (rounds.c.deadline > 0) & (rounds.c.deadline <= now)
        waiting = rounds.c.state.in_(("closed", "opening")) & (rounds.c.manifest != "")
        opening = waiting & (rounds.c.opening_deadline <= now)
        overdue = select(func.count()).where(or_(collecting, opening))
        async with self.database.read() as connection:
            states = await connection.execute(live)
            return ServerStatus(
                rounds=dict.fromkeys(_LIVE, 0) | {row[0]: row[1] for row in states},
                oldest=(await connection.execute(oldest)).scalar() or 0.0,
                stuck=(await connection.execute(stuck)).scalar_one(),
                overdue=(await connection.execute(overdue)).scalar_one(),
            )
