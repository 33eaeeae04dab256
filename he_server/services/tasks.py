"""Tasks: one that the authority signed, from its frame into the database, and where each stands."""

from __future__ import annotations

from he_protocol import frames
from he_protocol.documents import TaskStatus
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_ADDRESSED
from he_protocol.task import Task
from he_server.blobs.keys import model_blob
from he_server.rules.bodies import check_declared
from he_server.rules.records import TaskRecord
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.initial import adding, check_model, keep_incoming, read_model
from he_server.services.receive import keep_or_delete
from he_server.services.strangers import in_time
from he_server.services.task_cache import TaskCache


async def accept_task(server: ServerContext, frame: Frame, declared: int | None) -> tuple[Task, bool]:
    """Add the task in a frame of `declared` bytes, with its initial model; False when it was there already.

    Anybody may send it: the signed head comes first, and says how large the body is, and whether it is wanted. Raises
    whatever is wrong with it.
    """
    async with in_time():
        token = await frame.token()
    task = await server.threads.unproved(lambda: Task.from_token(token, server.keys.authority))
    entry, own = task.config.server, server.keys.own
    if (entry.name, entry.key) != (own.name, own.public):
        raise ProblemError(NOT_ADDRESSED, "the task is for another server", expected=own.name, got=entry.name)
    check_declared(declared, frames.PREFIX_BYTES + len(token) + task.model_limit)
    if await server.store.tasks.has(task.id):
        check_model(task, await read_model(server.threads, frame, task))
        return task, False
    with adding(server.adding, task):
        sha256 = await keep_incoming(server, frame, task)
        async with keep_or_delete(server, model_blob(task.id, sha256)):
            return task, await server.store.tasks.add(task, sha256, server.clock())


async def task_status(tasks: TaskCache, record: TaskRecord) -> TaskStatus:
    """The public document about a task."""
    task = await tasks.get(record.task)
    ready = record.posts == len(task.scheme.ceremony) * len(task.config.committee.holders)
    return TaskStatus(record.task, record.name, record.token, ready, record.model_version, record.round, record.state)
