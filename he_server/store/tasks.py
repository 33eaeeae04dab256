"""Tasks, their models, and the board of their key ceremony."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, func, insert, select
from sqlalchemy.exc import IntegrityError

from he_protocol.documents import Phase
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import payload_hash
from he_protocol.problems import BAD_TENSORS, CEREMONY_CONFLICT, NOT_FOUND
from he_protocol.task import Task
from he_server.blobs.keys import model_blob, post_blob, sum_blob, velocity_blob
from he_server.rules.records import ModelRecord, PostRecord, TaskRecord
from he_server.store import audit
from he_server.store.engine import Database
from he_server.store.schema import board, models, rounds, tasks


class TaskStore(Database):
    """State changes and reads of `tasks`, `models` and `board`."""

    async def add_task(self, task: Task, model_sha256: str, now: float) -> bool:
        """Add a task with its initial model as version 0 and its first open round.

        False when it was there already. Raises `bad-tensors` when it was added with another model.
        """
        try:
            async with self._write() as connection:
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
            first = await self.model(task.id, 0)
            if first.sha256 != model_sha256:
                raise ProblemError(
                    BAD_TENSORS, "the task has another initial model", expected=first.sha256, got=model_sha256
                ) from None
            return False
        return True

    async def has_task(self, task: str) -> bool:
        """Whether a task was added."""
        query = select(tasks.c.task_hash).where(tasks.c.task_hash == task)
        async with self._read() as connection:
            return (await connection.execute(query)).first() is not None

    async def kept_blobs(self) -> frozenset[str]:
        """Names of all blobs that belong to model versions and posts, for as long as their tasks are kept."""
        names: set[str] = set()
        async with self._read() as connection:
            for row in await connection.execute(select(models.c.task_hash, models.c.sha256, models.c.round_id)):
                names |= {model_blob(row.task_hash, row.sha256), velocity_blob(row.task_hash, row.sha256)}
                names |= {sum_blob(row.task_hash, row.round_id)} if row.round_id is not None else set()
            posts = await connection.execute(select(board.c.task_hash, board.c.blob))
            names.update(post_blob(post.task_hash, post.blob) for post in posts)
        return frozenset(names)

    async def tasks(self) -> tuple[TaskRecord, ...]:
        """All tasks, oldest first."""
        async with self._read() as connection:
            found = await connection.execute(_tasks().order_by(tasks.c.created, tasks.c.task_hash))
            return tuple(_task_record(row) for row in found)

    async def task(self, task: str) -> TaskRecord:
        """Raises `not-found`."""
        async with self._read() as connection:
            row = (await connection.execute(_tasks().where(tasks.c.task_hash == task))).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, "no such task", got=task)
        return _task_record(row)

    async def model(self, task: str, version: int | None = None) -> ModelRecord:
        """One version of the model, the newest by default. Raises `not-found`."""
        query = select(models).where(models.c.task_hash == task).order_by(models.c.version.desc()).limit(1)
        if version is not None:
            query = query.where(models.c.version == version)
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, "no such model version", got="newest" if version is None else version)
        return ModelRecord(row.version, row.round_id, row.sha256)

    async def post_to_board(self, task: str, phase: Phase, post: PostRecord) -> bool:
        """Add one holder's post. False when the same message is there already.

        Raises `ceremony-conflict` when another one is.
        """
        try:
            async with self._write() as connection:
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

    async def posts(self, task: str, phase: Phase) -> tuple[PostRecord, ...]:
        """All posts of one phase, by holder."""
        query = select(board).where(board.c.task_hash == task, board.c.phase == phase).order_by(board.c.holder)
        async with self._read() as connection:
            return tuple(_post_record(row) for row in await connection.execute(query))

    async def post(self, task: str, phase: Phase, holder: str) -> PostRecord:
        """One post. Raises `not-found`."""
        query = select(board).where(board.c.task_hash == task, board.c.phase == phase, board.c.holder == holder)
        async with self._read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise ProblemError(NOT_FOUND, f"{holder} has not posted its {phase}")
        return _post_record(row)


def check_same_post(before: str, offered: str, phase: Phase) -> None:
    """Raises `ceremony-conflict` when a holder posts something else than before."""
    if before != offered:
        raise ProblemError(CEREMONY_CONFLICT, f"this holder posted another {phase} before")


def _tasks() -> Select[Any]:
    newest = select(func.max(models.c.version)).where(models.c.task_hash == tasks.c.task_hash).scalar_subquery()
    current = (
        select(rounds.c.number)
        .where(rounds.c.task_hash == tasks.c.task_hash, rounds.c.state == "open")
        .scalar_subquery()
    )
    confirmed = (
        select(func.count())
        .select_from(board)
        .where(board.c.task_hash == tasks.c.task_hash, board.c.phase == "confirmation")
        .scalar_subquery()
    )
    return select(
        tasks.c.task_hash,
        tasks.c.name,
        tasks.c.token,
        newest.label("version"),
        current.label("round"),
        confirmed.label("confirmations"),
    )


def _task_record(row: Row[Any]) -> TaskRecord:
    return TaskRecord(row.task_hash, row.name, row.token, row.version, row.round, row.confirmations)


def _post_record(row: Row[Any]) -> PostRecord:
    return PostRecord(row.holder, row.message, row.size, row.blob)
