"""Commands that work on the database itself: the server need not run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from he_party.console import Format, show_json, show_table
from he_party.tables import Cell
from he_party.text import read_text
from he_protocol.documents import RoundStatus, TaskState
from he_protocol.errors import ProblemError, printable
from he_protocol.identity.revocation import Revocations
from he_protocol.problems import BAD_SETTINGS, NOT_ADDRESSED, NOT_FOUND
from he_protocol.task import Task
from he_server.blobs.tensor_file import keep_model
from he_server.rules.records import TaskRecord, waiting_for
from he_server.services.context import open_server
from he_server.services.installation import check_database
from he_server.services.migration import migrate as migrate_database
from he_server.settings import Settings
from he_server.store import Store
from he_server.store.engine import make_engine


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store of this data directory. Raises `bad-settings` where it belongs to another database."""
    await check_database(settings)
    store = Store(make_engine(settings.database))
    try:
        yield store
    finally:
        await store.close()


async def _found(store: Store, wanted: str) -> TaskRecord:
    """The newest epoch of this name, or the one task whose hash begins so. Raises `not-found`."""
    known = await store.tasks.all()
    newest = max((task.epoch for task in known if task.name == wanted), default=None)
    if newest is not None:
        found = [task for task in known if (task.name, task.epoch) == (wanted, newest)]
    else:
        found = [task for task in known if wanted and task.task.startswith(wanted)]
    if len(found) != 1:
        listed = ", ".join(f"{task.task[:12]} ({named(task)})" for task in found or known)
        raise ProblemError(
            NOT_FOUND,
            f"{len(found)} tasks have this name, or hashes that begin so",
            expected=listed or "a task that was added",
            got=wanted[:80],
        )
    return found[0]


async def move_task(settings: Settings, wanted: str, state: TaskState) -> str:
    """Pause a task, let it go on, or close it; the answer says which."""
    async with open_store(settings) as store:
        record = await _found(store, wanted)
        await store.tasks.move(record.task, state)
        return named(record)


async def find(settings: Settings, wanted: str) -> TaskRecord:
    """Which task a name or hash is. Raises `not-found`."""
    async with open_store(settings) as store:
        return await _found(store, wanted)


def named(task: TaskRecord) -> str:
    """How people tell a task from the others of its name."""
    return f"{task.name}, epoch {task.epoch}"


async def abandon(settings: Settings, wanted: str, number: int) -> None:
    async with open_store(settings) as store:
        record = await store.rounds.get((await _found(store, wanted)).task, number)
        await store.rounds.abandon(record, "an operator gave the round up: its updates are spent", time.time())


async def recover(settings: Settings, wanted: str, opening: int | None, version: int | None) -> tuple[int, int]:
    async with open_store(settings) as store:
        record = await _found(store, wanted)
        task = Task.from_token(record.token, settings.read_authority())
        seen = await store.answers.seen_by_holders(task)
        opening = seen[0] if opening is None else opening
        if (
            version is None
        ):  # the last opening may have published the one after what they voted on: that number is taken
            version = max(seen[1] + 2 if any(seen) else 0, record.model_version)
        await store.rounds.recover(task.id, opening, version, time.time())
        return opening, version


async def add_task(settings: Settings, token: Path, model: Path) -> str:
    await migrate_database(settings)
    server = open_server(settings)
    try:
        signed, initial = await asyncio.to_thread(lambda: (read_text(token, BAD_SETTINGS), model.read_bytes()))
        task = Task.from_token(signed, server.keys.authority)
        if task.config.server.key != server.keys.own.public:
            raise ProblemError(NOT_ADDRESSED, "the task is for another server", got=task.config.server.name)
        sha256 = await server.threads.run(keep_model, server.blobs, task, initial)
        await server.store.tasks.add(task, sha256, time.time())
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot read {error.filename}: {error.strerror}") from None
    finally:
        await server.store.close()
    return task.id


async def revoke(settings: Settings, file: Path) -> Revocations:
    await migrate_database(settings)
    async with open_store(settings) as store:
        known = Revocations.read(await asyncio.to_thread(read_text, file, BAD_SETTINGS), settings.read_authority())
        await store.revocations.learn(known, time.time())
    return known


async def read(settings: Settings) -> list[tuple[TaskRecord, list[RoundStatus]]]:
    async with open_store(settings) as store:
        records, authority = await store.tasks.all(), settings.read_authority()
        found = []
        for record in records:
            task = Task.from_token(record.token, authority)
            found.append((record, await store.answers.statuses(task, await store.rounds.recent(task.id))))
        return found


def reported(round_: RoundStatus) -> str:
    """What a published round's clients said, with the standard deviation of its noise."""
    means = [
        f"{one.name} {', '.join(f'{value:.3g}' for value in one.values)} ±{one.std:.2g}"
        if one.values
        else f"{one.name}: too few reports to tell"
        for one in round_.metrics
    ]
    return "; ".join(means)


def show(found: list[tuple[TaskRecord, list[RoundStatus]]], form: Format) -> None:
    if form == "json":
        documents = [
            {
                "task": task.task,
                "name": task.name,
                "epoch": task.epoch,
                "state": task.state,
                "model_version": task.model_version,
                "round": task.round,
                "rounds": rounds,
            }
            for task, rounds in found
        ]
        show_json(documents)
        return
    rows: list[list[Cell]] = []
    for task, rounds in found:
        rows.append([task.task[:12], named(task), str(task.model_version), str(task.round), task.state, "", "", ""])
        for r in rounds:
            why = printable(r.failure.detail) if r.failure is not None else waiting_for(r) or reported(r)
            rows.append(["", "", str(r.version), str(r.round), r.state, str(r.updates), str(r.shares), why])
    show_table(["task", "name", "model", "round", "state", "updates", "shares", "why"], rows)
