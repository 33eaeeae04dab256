"""Rounds from their deadline on: leases, manifests, publication and failure."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from he_protocol.documents import RECENT_ROUNDS, DroppedBucket, RoundMetric
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import payload_hash, read_unverified
from he_protocol.messages import Manifest
from he_protocol.problems import ABANDONED, NOT_FOUND, TOO_FEW_CLIENTS, WRONG_STATE, ProblemType
from he_protocol.task import Task
from he_server.rules.manifests import Plan
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import at_deadline
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.models import model_of, publish_again
from he_server.store.queries import SELECT_ROUNDS
from he_server.store.records import round_record
from he_server.store.schema import models, rounds, tasks, updates
from he_server.store.transitions import create_round, lock_task, move_round


@dataclass(frozen=True)
class Lease:
    """A round that one worker may work on; every later change checks `token`."""

    round: RoundRecord
    token: str


@dataclass(frozen=True)
class RoundStore:
    """State changes and reads of `rounds`."""

    database: Database

    async def get(self, task: str, number: int) -> RoundRecord:
        """Raises `not-found`."""
        query = SELECT_ROUNDS.where(rounds.c.task_hash == task, rounds.c.number == number)
        async with self.database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, "no such round", got=number)
        return round_record(row)

    async def recent(self, task: str) -> tuple[RoundRecord, ...]:
        """The newest rounds, newest first."""
        query = SELECT_ROUNDS.where(rounds.c.task_hash == task).order_by(rounds.c.number.desc()).limit(RECENT_ROUNDS)
        async with self.database.read() as connection:
            return tuple(round_record(row) for row in await connection.execute(query))

    async def live(self) -> tuple[RoundRecord, ...]:
        """Every round that a worker may have to do something about, oldest first."""
        states = ("open", "closed", "opening")
        async with self.database.read() as connection:
            found = await connection.execute(SELECT_ROUNDS.where(rounds.c.state.in_(states)).order_by(rounds.c.id))
            return tuple(round_record(row) for row in found)

    async def close_due(self, task: Task, due: RoundRecord, now: float) -> RoundRecord | None:
        """Close an open round at its deadline, or fail it if it has too few clients; create the next one.

        None when there is nothing to do (any more).
        """
        async with self.database.write() as connection:
            await lock_task(connection, task.id)
            row = (
                await connection.execute(SELECT_ROUNDS.where(rounds.c.id == due.id, rounds.c.state == "open"))
            ).one_or_none()
            if row is None:
                return None
            current = round_record(row)
            what = at_deadline(current.updates, task.config.rounds.min_clients, current.deadline, now)
            if what == "wait":
                return None
            seconds = {"collect": now + task.config.rounds.collect_seconds - current.deadline}
            if what == "close":
                await move_round(connection, current, "closed", closed_at=now, seconds=seconds)
            else:
                came = f"{current.updates} of at least {task.config.rounds.min_clients} clients came"
                await move_round(
                    connection,
                    current,
                    "failed",
                    closed_at=now,
                    seconds=seconds,
                    failure_type=TOO_FEW_CLIENTS.urn,
                    failure_detail=f"{came} within {task.config.rounds.collect_seconds} s",
                )
            await create_round(connection, task.id, current.number + 1, now)
            moved = round_record((await connection.execute(SELECT_ROUNDS.where(rounds.c.id == due.id))).one())
            if what == "close":
                await audit.append(connection, "round-closed", task.id, moved.number, updates=moved.updates)
            else:
                said = {"problem": moved.failure_type, "why": moved.failure_detail}
                await audit.append(connection, "round-failed", task.id, moved.number, **said)
            return moved

    async def lease(self, wanted: RoundRecord, now: float, seconds: float) -> Lease | None:
        """Take a round to work on for `seconds`; None when another worker has it or it moved."""
        token = secrets.token_hex(16)
        async with self.database.write() as connection:
            taken = await connection.execute(
                update(rounds)
                .where(rounds.c.id == wanted.id, rounds.c.state == wanted.state, rounds.c.lease_until <= now)
                .values(lease_token=token, lease_until=now + seconds)
            )
        return Lease(wanted, token) if taken.rowcount == 1 else None

    async def renew(self, lease: Lease, now: float, seconds: float) -> bool:
        """Keep a lease for longer; False when it is lost."""
        async with self.database.write() as connection:
            kept = await connection.execute(
                update(rounds)
                .where(rounds.c.id == lease.round.id, rounds.c.lease_token == lease.token)
                .values(lease_until=now + seconds)
            )
        return kept.rowcount == 1

    async def release(self, lease: Lease, tried: int) -> None:
        """Give a round back; it is not tried again with `tried` shares or fewer."""
        async with self.database.write() as connection:
            await connection.execute(
                update(rounds)
                .where(rounds.c.id == lease.round.id, rounds.c.lease_token == lease.token)
                .values(lease_token="", lease_until=0.0, tried=tried)
            )

    async def begin_screening(self, lease: Lease, opening: int, manifest: str, plan: Plan, deadline: float) -> None:
        """Show holders a manifest that is not final: the round stays closed, and the lease is given back. It is late
        from `deadline` on."""
        async with self.database.write() as connection:
            changed = await connection.execute(
                update(rounds)
                .where(rounds.c.id == lease.round.id, rounds.c.lease_token == lease.token, rounds.c.state == "closed")
                .values(
                    manifest=manifest,
                    manifest_hash=payload_hash(manifest).hex(),
                    opening=opening,
                    opening_deadline=deadline,
                    excluded=msgspec.json.encode(plan.documents).decode(),
                    lease_token="",
                    lease_until=0.0,
                )
            )
            if changed.rowcount != 1:
                raise ProblemError(
                    WRONG_STATE, f"round {lease.round.number} was moved by another worker", expected="closed"
                )
            where, digest = (lease.round.task, lease.round.number), payload_hash(manifest).hex()
            out = len(plan.excluded)
            await audit.append(connection, "round-screened", *where, manifest=digest, opening=opening, excluded=out)

    async def begin_opening(
        self, lease: Lease, manifest: str, plan: Plan, deadline: float, seconds: dict[str, float]
    ) -> None:
        """closed -> opening, with the signed manifest that key holders vote for, and its buckets."""
        async with self.database.write() as connection:
            await move_round(
                connection,
                lease.round,
                "opening",
                lease=lease.token,
                seconds=seconds,
                manifest=manifest,
                manifest_hash=payload_hash(manifest).hex(),
                excluded=msgspec.json.encode(plan.documents).decode(),
                opening_deadline=deadline,
            )
            here = updates.c.round_id == lease.round.id
            for before, after in sorted(plan.buckets.items()):  # none is renumbered twice: numbers only become smaller
                renumbered = update(updates).where(here, updates.c.bucket == before)
                await connection.execute(renumbered.values(bucket=after))
            where, digest = (lease.round.task, lease.round.number), payload_hash(manifest).hex()
            count, out = plan.count, len(plan.excluded)
            await audit.append(connection, "round-opening", *where, manifest=digest, buckets=count, excluded=out)

    async def next_opening(self, record: RoundRecord) -> tuple[int, int] | None:
        """The number of the epoch's next opening, and when it may be formed at the earliest (Unix seconds).

        None while an earlier round of the task is (to be) opened: rounds are opened one after the other.
        """
        mine = rounds.c.task_hash == record.task
        waiting = rounds.c.state.in_(("closed", "opening"))
        before = select(rounds.c.id).where(mine, rounds.c.number < record.number, waiting)
        numbered = mine & (rounds.c.state != "closed")  # a manifest that is only screened is not binding; see `_fail`
        used = select(func.max(rounds.c.opening)).where(numbered)
        known = select(tasks.c.opened).where(tasks.c.task_hash == record.task)
        async with self.database.read() as connection:
            if (await connection.execute(before.limit(1))).first() is not None:
                return None
            by_rounds = (await connection.execute(used)).scalar() or 0
            highest = max(by_rounds, (await connection.execute(known)).scalar_one())
            last = select(rounds.c.manifest).where(numbered, rounds.c.opening == highest)
            token = (await connection.execute(last.limit(1))).scalar_one_or_none()
        return highest + 1, read_unverified(token, Manifest).formed if token else 0

    async def publish(
        self,
        lease: Lease,
        version: int,
        sha256: str,
        now: float,
        seconds: dict[str, float],
        dropped: Sequence[DroppedBucket] = (),
        metrics: Sequence[RoundMetric] = (),
    ) -> None:
        """opening -> published, with the model version that came of it (both or neither), less the buckets `dropped`.

        Raises `wrong-state` when another round published that version first: compute it again.
        """
        try:
            async with self.database.write() as connection:
                await move_round(
                    connection,
                    lease.round,
                    "published",
                    lease=lease.token,
                    seconds=seconds,
                    version=version,
                    dropped=msgspec.json.encode(dropped).decode(),
                    metrics=msgspec.json.encode(metrics).decode(),
                )
                await connection.execute(
                    insert(models).values(
                        task_hash=lease.round.task, version=version, round_id=lease.round.id, sha256=sha256, created=now
                    )
                )
                where = (lease.round.task, lease.round.number)
                await audit.append(connection, "round-published", *where, version=version, model=sha256)
        except IntegrityError:
            raise ProblemError(WRONG_STATE, f"model version {version} was published by another round") from None

    async def abandon(self, record: RoundRecord, why: str, now: float) -> None:
        """closed or opening -> failed because an operator says so: its updates are spent. Raises `wrong-state`."""
        async with self.database.write() as connection:
            await _fail(connection, record, "", ABANDONED, why, {})
            await _repeat_model(connection, record, now)
            said = {"problem": ABANDONED.urn, "why": why}
            await audit.append(connection, "round-failed", record.task, record.number, **said)

    async def recover(self, task: str, opening: int, version: int, now: float) -> None:
        """Go on after opening number `opening`, which key holders have seen and this database has not, with the newest
        model that is here under the version `version`, which is new to holders. Raises `wrong-state` for smaller ones.
        """
        async with self.database.write() as connection:
            await lock_task(connection, task)
            model = await model_of(connection, task)
            known = (await connection.execute(select(tasks.c.opened).where(tasks.c.task_hash == task))).scalar_one()
            if version < model.version or opening < known:
                got = f"opening {opening}, version {version}"
                expected = f"at least opening {known}, version {model.version}"
                raise ProblemError(WRONG_STATE, "numbers never go back", expected=expected, got=got)
            if version > model.version:
                await publish_again(connection, task, model, version, now)
            await connection.execute(update(tasks).where(tasks.c.task_hash == task).values(opened=opening))
            screened = (rounds.c.task_hash == task) & (rounds.c.state == "closed")
            await connection.execute(update(rounds).where(screened).values(manifest="", manifest_hash="", opening=0))
            said = {"opening": opening, "version": version}
            await audit.append(connection, "numbers-recovered", task, 0, **said)

    async def fail(
        self, lease: Lease, problem: ProblemType, detail: str, now: float, seconds: dict[str, float]
    ) -> None:
        """closed or opening -> failed; its clients see why. See `_repeat_model`."""
        async with self.database.write() as connection:
            await _fail(connection, lease.round, lease.token, problem, detail, seconds)
            await _repeat_model(connection, lease.round, now)
            where = (lease.round.task, lease.round.number)
            await audit.append(connection, "round-failed", *where, problem=problem.urn, why=detail)


async def _fail(
    connection: AsyncConnection,
    ended: RoundRecord,
    lease: str,
    problem: ProblemType,
    why: str,
    seconds: dict[str, float],
) -> None:
    """Before anybody could vote for a round it gives back its number, and with it its clients' versions."""
    voted = ended.state == "opening"
    await move_round(
        connection,
        ended,
        "failed",
        lease=lease,
        seconds=seconds,
        failure_type=problem.urn,
        failure_detail=why,
        opening=ended.opening if voted else 0,
        opening_deadline=ended.opening_deadline if voted else 0.0,
    )


async def _repeat_model(connection: AsyncConnection, ended: RoundRecord, now: float) -> None:
    """The newest model under one more version, after a round that key holders may have voted for and that gave none.

    Without DP noise they vote for one update of a client on each version: its clients could do nothing ever again.
    """
    if ended.state == "opening":
        model = await model_of(connection, ended.task)
        await publish_again(connection, ended.task, model, model.version + 1, now)
