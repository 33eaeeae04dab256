"""Tasks and their models."""

from __future__ import annotations

from aiohttp import web

from he_protocol import headers
from he_protocol.documents import TaskList
from he_protocol.errors import ProblemError
from he_protocol.messages import PublishedModel
from he_protocol.problems import NOT_FOUND
from he_server.blobs.keys import model_blob
from he_server.http.params import task_of
from he_server.http.responses import answer, stream_blob
from he_server.rules.requests import has_model
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.tasks import accept_task, task_status


async def list_tasks(server: ServerContext, _request: web.Request) -> web.StreamResponse:
    records = await server.store.tasks.all()
    return answer(TaskList(tuple([await task_status(server.tasks, record) for record in records])))


async def get_task(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    return answer(await task_status(server.tasks, await server.store.tasks.get(task.id)))


async def post_task(server: ServerContext, request: web.Request) -> web.StreamResponse:
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    task, created = await accept_task(server, frame, request.content_length)
    return answer(await task_status(server.tasks, await server.store.tasks.get(task.id)), 201 if created else 200)


async def get_model(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    wanted = request.query.get("version")
    if wanted is not None and not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 15):
        raise ProblemError(NOT_FOUND, "no such model version", got=wanted[:80])
    model = await server.store.models.get(task.id, None if wanted is None else int(wanted))
    said = PublishedModel(task.hash, model.version, bytes.fromhex(model.sha256))
    signed = await server.threads.run(server.keys.own.signing.sign, said)
    fields = {"ETag": f'"{model.sha256}"', headers.MODEL: signed, "Cache-Control": "no-cache"}
    if has_model(request.headers.get("If-None-Match", ""), model.sha256):
        return web.Response(status=304, headers=fields)
    return await stream_blob(server, request, model_blob(task.id, model.sha256), headers=fields)
