"""Tasks and their models."""

from __future__ import annotations

from aiohttp import web

from he_protocol import frames
from he_protocol.documents import TaskList, TaskStatus
from he_protocol.problems import NOT_ADDRESSED, NOT_FOUND, Refusal
from he_protocol.task import Task
from he_server.blobs.keys import model_blob
from he_server.http.params import task_of
from he_server.http.responses import answer, stream_blob
from he_server.rules.bodies import check_declared
from he_server.rules.records import TaskRecord
from he_server.services.context import Server
from he_server.services.frames import Frame
from he_server.services.initial import adding, check_model, keep_incoming, read_model
from he_server.services.receive import recording
from he_server.services.strangers import in_time

MODEL_VERSION = "HushSum-Model-Version"


async def list_tasks(server: Server, _request: web.Request) -> web.StreamResponse:
    records = await server.store.tasks()
    return answer(TaskList(tuple([await _status(server, record) for record in records])))


async def get_task(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    return answer(await _status(server, await server.store.task(task.id)))


async def post_task(server: Server, request: web.Request) -> web.StreamResponse:
    """Anybody may send it: the signed head comes first, and says how large the body is, and whether it is wanted."""
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    async with in_time():
        token = await frame.token()
    task = await server.unproved(lambda: Task.from_token(token, server.authority))
    entry = task.config.server
    if (entry.name, entry.key) != (server.key.name, server.key.public):
        raise Refusal(NOT_ADDRESSED, "the task is for another server", expected=server.key.name, got=entry.name)
    check_declared(request.content_length, frames.PREFIX_BYTES + len(token) + task.model_limit)
    if await server.store.has_task(task.id):
        check_model(task, await read_model(server, frame, task))
        return answer(await _status(server, await server.store.task(task.id)))
    with adding(server, task):
        sha256 = await keep_incoming(server, frame, task)
        async with recording(server, model_blob(task.id, sha256)):
            created = await server.store.add_task(task, sha256, server.clock())
    return answer(await _status(server, await server.store.task(task.id)), 201 if created else 200)


async def get_model(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    wanted = request.query.get("version")
    if wanted is not None and not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 15):
        raise Refusal(NOT_FOUND, "no such model version", got=wanted[:80])
    model = await server.store.model(task.id, None if wanted is None else int(wanted))
    headers = {"ETag": f'"{model.sha256}"', MODEL_VERSION: str(model.version), "Cache-Control": "no-cache"}
    if any(tag.value in {model.sha256, "*"} for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return await stream_blob(server, request, model_blob(task.id, model.sha256), headers=headers)


async def _status(server: Server, record: TaskRecord) -> TaskStatus:
    task = await server.task(record.task)
    ready = not task.scheme.ceremony or record.confirmations == len(task.config.holders)
    return TaskStatus(record.task, record.name, record.token, ready, record.model_version, record.round)
