"""What rounds are doing, and the sums that came of them."""

from __future__ import annotations

from aiohttp import web

from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_STATE
from he_server.blobs.keys import sum_blob
from he_server.http.auth import party_of
from he_server.http.params import round_number, task_of
from he_server.http.responses import STREAMING, answer, stream_blob
from he_server.services.context import ServerContext
from he_server.services.streams import texts


async def list_rounds(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    return answer(await server.store.answers.statuses(task, await server.store.rounds.recent(task.id)))


async def get_round(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    (status,) = await server.store.answers.statuses(
        task, [await server.store.rounds.get(task.id, round_number(request))]
    )
    return answer(status)


async def get_sum(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    record = await server.store.rounds.get(task.id, round_number(request))
    if record.state != "published":
        raise ProblemError(WRONG_STATE, "the round has no opened sum", expected="published", got=record.state)
    return await stream_blob(server, request, sum_blob(task.id, record.id))


async def get_events(server: ServerContext, request: web.Request) -> web.StreamResponse:
    """Server-sent events (WHATWG HTML section 9.2): the newest round first, then every change of state."""
    task = await task_of(server.tasks, request)
    with server.news.events.listening(task.id, party_of(request).public) as watch:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        request[STREAMING] = response
        await response.prepare(request)
        async for text in texts(watch):
            await response.write(text)
    return response
