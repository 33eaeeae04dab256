"""Tasks, each with its first model and its first round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from he_protocol.documents import TaskState
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS, NOT_FOUND, WRONG_STATE
from he_protocol.task import Task
from he_server.rules.audit_chain import Event
from he_server.rules.records import TaskRecord
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.models import model_of
from he_server.store.schema import board, models, rounds, tasks


@dataclass(frozen=True)
class TaskStore:
    """State changes and reads of `tasks`."""

    database: Database

    async def add(self, task: Task, model_sha256: str, now: float) -> bool:
        """Add a task with its initial model as version 0 and its first open round.

        False when it was there already. Raises `bad-tensors` when it was added with another model.
        """
        try:
            async with self.database.write() as connection:
                await connection.execute(
                    insert(tasks).values(
                        task_hash=task.id,
                        name=task.config.name,
                        token=task.token,
                        epoch=task.config.epoch,
                        created=now,
                    )
                )
                await connection.execute(
                    insert(models).values(task_hash=task.id, version=0, sha256=model_sha256, created=now)
                )
                await connection.execute(
                    insert(rounds).values(task_hash=task.id, number=1, state="open", opened_at=now)
                )
                await audit.append(connection, "task-added", task.id, 0, name=task.config.name, model=model_sha256)
        except IntegrityError:
            async with self.database.read() as connection:
                first = await model_of(connection, task.id, 0)
            if first.sha256 != model_sha256:
                raise ProblemError(
                    BAD_TENSORS, "the task has another initial model", expected=first.sha256, got=model_sha256
                ) from None
            return False
        return True

    async def has(self, task: str) -> bool:
        """Whether a task was added."""
        query = select(tasks.c.task_hash).where(tasks.c.task_hash == task)
        async with self.database.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def all(self) -> tuple[TaskRecord, ...]:
        """All tasks, oldest first."""
        async with self.database.read() as connection:
            found = await connection.execute(_tasks().order_by(tasks.c.created, tasks.c.task_hash))
            return tuple(_task_record(row) for row in found)

    async def move(self, task: str, state: TaskState) -> None:
        """Pause a task, let it go on, or close it. Raises `wrong-state`: a closed one stays closed."""
        async with self.database.write() as connection:
            mine = (tasks.c.task_hash == task) & (tasks.c.state != "closed")
            changed = await connection.execute(update(tasks).where(mine).values(state=state))
            if not changed.rowcount:
                raise ProblemError(
                    WRONG_STATE, "the task is closed: its clients were told so", expected="open or paused"
                )
            events: dict[TaskState, Event] = {"open": "task-open", "paused": "task-paused", "closed": "task-closed"}
            await audit.append(connection, events[state], task, 0)

    async def get(self, task: str) -> TaskRecord:
        """Raises `not-found`."""
        async with self.database.read() as connection:
            row = (await connection.execute(_tasks().where(tasks.c.task_hash == task))).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, "no such task", got=task)
        return _task_record(row)


def _tasks() -> Select[Any]:
    newest = select(func.max(models.c.version)).where(models.c.task_hash == tasks.c.task_hash).scalar_subquery()
    current = (
        select(rounds.c.number)
        .where(rounds.c.task_hash == tasks.c.task_hash, rounds.c.state == "open")
        .scalar_subquery()
    )
    posts = select(func.count()).where(board.c.task_hash == tasks.c.task_hash).scalar_subquery()
    return select(
        tasks.c.task_hash,
        tasks.c.name,
        tasks.c.epoch,
        tasks.c.token,
        tasks.c.state,
        newest.label("version"),
        current.label("round"),
        posts.label("posts"),
    )


def _task_record(row: Row[Any]) -> TaskRecord:
    return TaskRecord(row.task_hash, row.name, row.epoch, row.token, row.version, row.round, row.posts, row.state)
