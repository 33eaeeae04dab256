"""Updates: accepted once, into the open round of their task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.documents import TaskState
from he_protocol.errors import ProblemError
from he_protocol.problems import ALREADY_IN_ROUND, NOT_FOUND, REPEATED_BASE, UPDATE_ID_REUSED, WRONG_STATE
from he_protocol.task import Task
from he_server.rules.records import Accepted, RoundRecord, UpdateRecord
from he_server.rules.updates import Openings, check_base_version, check_taking
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.queries import SELECT_ROUNDS
from he_server.store.records import round_record, update_record
from he_server.store.schema import models, rounds, tasks, updates
from he_server.store.transitions import create_round, lock_task, move_round


@dataclass(frozen=True)
class NewUpdate:
    """A checked update. Its bytes are durable under `blob`; where that is empty, they are `sections`, by role."""

    update_id: str
    client: str
    header: str
    header_hash: str
    credential: str
    base_version: int
    receipt: str
    blob: str = ""
    sections: Mapping[str, memoryview] = field(default_factory=dict, repr=False)


WriteBlobs = Callable[[Sequence[NewUpdate]], Awaitable[str]]
"""Makes the sections of updates without a blob durable, one after the other, in blobs of one name, which it returns.
For the other updates it checks that their blobs still exist."""


@dataclass(frozen=True)
class CurrentTask:
    """Where a task stands: its open round, the version of its newest model, what its operator wants of it."""

    round: RoundRecord
    version: int
    state: TaskState
    openings: Openings


@dataclass(frozen=True)
class KnownUpdates:
    """What the database knows about new updates of one task.

    by_id: header hash, receipt and round number of updates with the offered ids, and of some others. in_round: update
    ids by client, of the offered clients in the open round, and of some others. bases: offered clients with the base
    versions of updates that are, or may be, in an opened sum; only without DP noise.
    """

    by_id: dict[str, tuple[str, str, int]]
    in_round: dict[str, str]
    current: CurrentTask
    bases: set[tuple[str, int]] = field(default_factory=set)


@dataclass(frozen=True)
class UpdateStore:
    """State changes and reads of `updates`."""

    database: Database

    async def expect(self, task: Task, offered: NewUpdate) -> Accepted | None:
        """What `accept` would refuse now, before any body is read; an earlier receipt if there is one."""
        async with self.database.read() as connection:
            current_task = await _current_task(connection, task.id)
            return admit(task, offered, await _known(connection, task, current_task, [offered]))

    async def accept(
        self, task: Task, offers: Sequence[tuple[NewUpdate, float]], write_blobs: WriteBlobs
    ) -> Sequence[Accepted | ProblemError]:
        """Put updates, each with the time when it came, into the open round, in one transaction.

        The first sets the round's deadline, the last closes it: outcomes are in order, up to the offer that
        does. A refusal is `update-id-reused`, `already-in-round`, `stale-update` or `repeated-base`.
        """
        async with self.database.write() as connection:
            await lock_task(connection, task.id)
            current_task = await _current_task(connection, task.id)
            current = current_task.round
            known = await _known(connection, task, current_task, [offered for offered, _ in offers])
            outcomes: list[Accepted | ProblemError] = []
            entering: list[tuple[NewUpdate, float]] = []
            for offered, now in offers:
                try:
                    before = admit(task, offered, known)
                except ProblemError as refusal:
                    outcomes.append(refusal)
                    continue
                if before is None:
                    entering.append((offered, now))
                    known.by_id[offered.update_id] = offered.header_hash, offered.receipt, current.number
                    known.in_round[offered.client] = offered.update_id
                    known.bases.add((offered.client, offered.base_version))
                full = before is None and current.updates + len(entering) == task.config.rounds.max_clients
                outcomes.append(before or Accepted(offered.receipt, current.number, created=True, closed=full))
                if full:
                    break
            if entering:
                await _enter(connection, task, current, entering, write_blobs)
            return outcomes

    async def status(self, task: str, update_id: str, client: str) -> tuple[UpdateRecord, RoundRecord]:
        """A client's own update and its round. Raises `not-found`, also for the update of another client."""
        query = select(updates).where(
            updates.c.task_hash == task, updates.c.update_id == update_id, updates.c.client == client
        )
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise ProblemError(NOT_FOUND, "no such update of yours", got=update_id)
            found = (await connection.execute(SELECT_ROUNDS.where(rounds.c.id == row.round_id))).one()
        return update_record(row), round_record(found)

    async def of_round(self, round_id: int) -> tuple[UpdateRecord, ...]:
        """The updates of one round, sorted by id."""
        query = select(updates).where(updates.c.round_id == round_id).order_by(updates.c.update_id)
        async with self.database.read() as connection:
            return tuple(update_record(row) for row in await connection.execute(query))


def admit(task: Task, offered: NewUpdate, known: KnownUpdates) -> Accepted | None:
    """The receipt of the same update, sent again; None for a new one that may enter the open round.

    Raises `task-closed`, `task-paused`, `update-id-reused`, `already-in-round`, `stale-update` or `repeated-base`.
    """
    header_hash, receipt, number = known.by_id.get(offered.update_id, ("", "", 0))
    if header_hash == offered.header_hash:
        return Accepted(receipt, number, created=False)
    now = known.current
    check_taking(task, now.state, now.openings)
    check_base_version(offered.base_version, now.version, task.config.rounds.staleness, now.openings.undecided)
    if header_hash:
        raise ProblemError(
            UPDATE_ID_REUSED,
            "an update with this id and another header was accepted before",
            expected=header_hash,
            got=offered.header_hash,
        )
    if offered.client in known.in_round:
        detail = "one update per client and round; wait for the next one"
        raise ProblemError(ALREADY_IN_ROUND, detail, got=known.in_round[offered.client])
    if not task.config.privacy.noisy and (offered.client, offered.base_version) in known.bases:
        raise ProblemError(
            REPEATED_BASE,
            "fetch the model again and train on it",
            got=f"a second update on version {offered.base_version}",
        )
    return None


async def _known(
    connection: AsyncConnection, task: Task, current_task: CurrentTask, offers: Sequence[NewUpdate]
) -> KnownUpdates:
    current = current_task.round
    ids, clients = [offer.update_id for offer in offers], [offer.client for offer in offers]
    offered_before = and_(updates.c.task_hash == current.task, updates.c.update_id.in_(ids))
    in_round = and_(updates.c.round_id == current.id, updates.c.client.in_(clients))
    found = await connection.execute(
        select(
            updates.c.update_id,
            updates.c.header_hash,
            updates.c.receipt,
            updates.c.round_id,
            updates.c.client,
            rounds.c.number,
        )
        .join(rounds, rounds.c.id == updates.c.round_id)
        .where(or_(offered_before, in_round))
    )
    known = KnownUpdates({}, {}, current_task)
    for row in found:
        known.by_id[row.update_id] = row.header_hash, row.receipt, row.number
        if row.round_id == current.id:
            known.in_round[row.client] = row.update_id
    if not task.config.privacy.noisy:
        known.bases.update(await _bases(connection, task, clients))
    return known


async def _bases(connection: AsyncConnection, task: Task, clients: Sequence[str]) -> Sequence[tuple[str, int]]:
    """Clients and base versions of updates that key holders have voted for, or will be asked to."""
    counted = or_(rounds.c.state != "failed", rounds.c.opening_deadline > 0)
    query = (
        select(updates.c.client, updates.c.base_version)
        .join(rounds, rounds.c.id == updates.c.round_id)
        .where(updates.c.task_hash == task.id, updates.c.client.in_(clients), counted)
    )
    return [(row.client, row.base_version) for row in await connection.execute(query)]


async def _enter(
    connection: AsyncConnection,
    task: Task,
    current: RoundRecord,
    entering: Sequence[tuple[NewUpdate, float]],
    write_blobs: WriteBlobs,
) -> None:
    """Make the bytes durable, insert the rows, and close the round when they fill it."""
    offers, now = [offered for offered, _ in entering], entering[0][1]
    shared = await write_blobs(offers)
    places = {offered.update_id: place for place, offered in enumerate(o for o in offers if not o.blob)}
    rows = [
        {
            "task_hash": task.id,
            "update_id": offered.update_id,
            "round_id": current.id,
            "client": offered.client,
            "header": offered.header,
            "header_hash": offered.header_hash,
            "credential": offered.credential,
            "base_version": offered.base_version,
            "received": received,
            "receipt": offered.receipt,
            "blob": offered.blob or shared,
            "position": places.get(offered.update_id, 0),
            "bucket": (current.updates + number) % task.config.rounds.buckets,
        }
        for number, (offered, received) in enumerate(entering)
    ]
    await connection.execute(insert(updates), rows)
    count, deadline = current.updates + len(rows), current.deadline or now + task.config.rounds.collect_seconds
    counted = await connection.execute(
        update(rounds)
        .where(rounds.c.id == current.id, rounds.c.state == "open", rounds.c.updates == current.updates)
        .values(updates=count, deadline=deadline)
    )
    if counted.rowcount != 1:
        raise ProblemError(WRONG_STATE, "the round changed while updates were accepted", expected="open")
    if count == task.config.rounds.max_clients:
        seconds = {"collect": now + task.config.rounds.collect_seconds - deadline}
        await move_round(connection, current, "closed", closed_at=now, seconds=seconds)
        await create_round(connection, task.id, current.number + 1, now)
        await audit.append(connection, "round-closed", task.id, current.number, updates=count)


async def _current_task(connection: AsyncConnection, task: str) -> CurrentTask:
    newest = select(func.max(models.c.version)).where(models.c.task_hash == task).scalar_subquery()
    other = rounds.alias()
    waiting = select(func.count()).where(other.c.task_hash == task, other.c.state == "closed").scalar_subquery()
    opening = select(func.count()).where(other.c.task_hash == task, other.c.state == "opening").scalar_subquery()
    given = select(func.max(other.c.opening)).where(other.c.task_hash == task, other.c.state != "closed")
    query = SELECT_ROUNDS.add_columns(
        newest.label("newest"),
        tasks.c.state.label("task_state"),
        tasks.c.opened,
        waiting.label("waiting"),
        opening.label("in_opening"),
        given.scalar_subquery().label("given"),
    ).join(tasks, tasks.c.task_hash == rounds.c.task_hash)
    row = (await connection.execute(query.where(rounds.c.task_hash == task, rounds.c.state == "open"))).one()
    openings = Openings(max(row.given or 0, row.opened), row.waiting, row.waiting + row.in_opening)
    return CurrentTask(round_record(row), row.newest, row.task_state, openings)
