"""Uploads of clients."""

from __future__ import annotations

from aiohttp import web

from he_protocol.documents import UpdateReceipt, UpdateStatus
from he_server.http.auth import party_of
from he_server.http.params import hex_id, task_of
from he_server.http.responses import answer
from he_server.rules.bodies import Sender, update_frame
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.submit import accept


async def put_update(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    update_id = hex_id(request.match_info["update"], 16, "update")
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    accepted = await accept(server, task, update_id, party_of(request), frame)
    return answer(UpdateReceipt(accepted.receipt, accepted.round), 201 if accepted.created else 200)


async def sender_of_update(server: ServerContext, request: web.Request) -> Sender:
    return Sender(party_of(request).public, update_frame(await task_of(server.tasks, request)))


async def get_update(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    update_id = hex_id(request.match_info["update"], 16, "update").hex()
    update, current = await server.store.updates.status(task.id, update_id, party_of(request).name)
    failure = current.failure_of(update)
    return answer(UpdateStatus(update.update_id, current.number, current.state, current.version, failure))
