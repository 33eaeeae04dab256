"""Updates: accepted once, into the open round of their task."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.problems import ALREADY_IN_ROUND, NOT_FOUND, UPDATE_ID_REUSED, WRONG_STATE, Refusal
from he_protocol.task import Task
from he_server.rounds import check_base_version
from he_server.store.database import Database
from he_server.store.moves import lock_task, move_round, open_round
from he_server.store.records import Accepted, RoundRecord, UpdateRecord, round_record, update_record
from he_server.store.schema import models, rounds, updates
from he_server.store.selects import select_rounds


@dataclass(frozen=True)
class NewUpdate:
    """A checked update whose bytes are durable under `blob`."""

    update_id: str
    client: str
    header: str
    header_hash: str
    credential: str
    base_version: int
    receipt: str
    blob: str


class UpdateStore(Database):
    """State changes and reads of `updates`."""

    async def expect_update(self, task: Task, offered: NewUpdate) -> Accepted | None:
        """What `accept_update` would refuse now, before any body is read; an earlier receipt if there is one."""
        async with self._read() as connection:
            return await _admit(connection, task, offered)

    async def accept_update(self, task: Task, offered: NewUpdate, now: float) -> Accepted:
        """Put an update into the open round; the first sets the round's deadline, the last closes it.

        Raises `update-id-reused`, `already-in-round` or `stale-update`.
        """
        async with self._write() as connection:
            await lock_task(connection, task.id)
            before = await _admit(connection, task, offered)
            if before is not None:
                return before
            current = await _open_round(connection, task.id)
            await connection.execute(
                insert(updates).values(
                    task_hash=task.id,
                    update_id=offered.update_id,
                    round_id=current.id,
                    client=offered.client,
                    header=offered.header,
                    header_hash=offered.header_hash,
                    credential=offered.credential,
                    base_version=offered.base_version,
                    received=now,
                    receipt=offered.receipt,
                    blob=offered.blob,
                )
            )
            count = current.updates + 1
            deadline = current.deadline or now + task.config.collect_seconds
            counted = await connection.execute(
                update(rounds)
                .where(rounds.c.id == current.id, rounds.c.state == "open", rounds.c.updates == current.updates)
                .values(updates=count, deadline=deadline)
            )
            if counted.rowcount != 1:
                raise Refusal(WRONG_STATE, "the round changed while an update was accepted", expected="open")
            full = count >= task.config.max_clients
            if full:
                seconds = {"collect": now + task.config.collect_seconds - deadline}
                await move_round(connection, current, "closed", closed_at=now, seconds=seconds)
                await open_round(connection, task.id, current.number + 1, now)
            return Accepted(offered.receipt, current.number, created=True, closed=full)

    async def update_status(self, task: str, update_id: str, client: str) -> tuple[UpdateRecord, RoundRecord]:
        """A client's own update and its round. Raises `not-found`, also for the update of another client."""
        query = select(updates).where(
            updates.c.task_hash == task, updates.c.update_id == update_id, updates.c.client == client
        )
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise Refusal(NOT_FOUND, "no such update of yours", got=update_id)
            found = (await connection.execute(select_rounds().where(rounds.c.id == row.round_id))).one()
        return update_record(row), round_record(found)

    async def updates_of(self, round_id: int) -> tuple[UpdateRecord, ...]:
        """The updates of one round, sorted by id."""
        query = select(updates).where(updates.c.round_id == round_id).order_by(updates.c.update_id)
        async with self._read() as connection:
            return tuple(update_record(row) for row in await connection.execute(query))


async def _admit(connection: AsyncConnection, task: Task, offered: NewUpdate) -> Accepted | None:
    query = (
        select(updates.c.header_hash, updates.c.receipt, rounds.c.number)
        .join(rounds, rounds.c.id == updates.c.round_id)
        .where(updates.c.task_hash == task.id, updates.c.update_id == offered.update_id)
    )
    known = (await connection.execute(query)).one_or_none()
    newest = await connection.execute(select(func.max(models.c.version)).where(models.c.task_hash == task.id))
    current: int = newest.scalar_one()
    if known is not None and known.header_hash == offered.header_hash:
        return Accepted(known.receipt, known.number, created=False)
    check_base_version(offered.base_version, current, task.config.staleness)
    if known is not None:
        raise Refusal(
            UPDATE_ID_REUSED,
            "an update with this id and another header was accepted before",
            expected=known.header_hash,
            got=offered.header_hash,
        )
    twice = (
        select(updates.c.update_id)
        .join(rounds, rounds.c.id == updates.c.round_id)
        .where(rounds.c.task_hash == task.id, rounds.c.state == "open", updates.c.client == offered.client)
    )
    other = (await connection.execute(twice)).scalar_one_or_none()
    if other is not None:
        raise Refusal(ALREADY_IN_ROUND, "one update per client and round; wait for the next one", got=other)
    return None


async def _open_round(connection: AsyncConnection, task: str) -> RoundRecord:
    row = (await connection.execute(select_rounds().where(rounds.c.task_hash == task, rounds.c.state == "open"))).one()
    return round_record(row)
