"""What rounds are doing, and the sums that came of them."""

from __future__ import annotations

import msgspec
from aiohttp import web

from he_protocol.problems import NOT_FOUND, WRONG_STATE, Refusal
from he_server.answers import STREAMING, answer, stream_blob
from he_server.handlers.tasks import task_of
from he_server.names import sum_blob
from he_server.server import Server

EVENT_SECONDS = 1.0
"""How often the database is asked for news that another process made."""
EVENT_ROUNDS_KEPT = 200


def round_number(request: web.Request) -> int:
    """The round that the path names. Raises `not-found`."""
    text = request.match_info["round"]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise Refusal(NOT_FOUND, "no such round", got=text[:80])
    return int(text)


async def list_rounds(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    return answer([record.status() for record in await server.store.recent_rounds(task.id)])


async def get_round(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    return answer((await server.store.round(task.id, round_number(request))).status())


async def get_sum(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    record = await server.store.round(task.id, round_number(request))
    if record.state != "published":
        raise Refusal(WRONG_STATE, "the round has no opened sum", expected="published", got=record.state)
    return await stream_blob(server, request, sum_blob(task.id, record.id))


async def get_events(server: Server, request: web.Request) -> web.StreamResponse:
    """Server-sent events (WHATWG HTML section 9.2): the newest round first, then every change of state."""
    task = await task_of(server, request)
    recent = await server.store.recent_rounds(task.id)
    told = {record.number: record.state for record in recent[1:]}
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    request[STREAMING] = response
    await response.prepare(request)
    while True:
        for record in reversed(recent):
            if told.get(record.number) != record.state:
                told[record.number] = record.state
                data = msgspec.json.encode(record.status()).decode()
                await response.write(f"event: round\nid: {record.number}\ndata: {data}\n\n".encode())
        if server.draining:
            return response
        await server.notifier.wait(task.id, EVENT_SECONDS)
        await response.write(b": still here\n\n")  # finds out when the reader has gone
        recent = await server.store.recent_rounds(task.id)
        told = {number: state for number, state in told.items() if number > recent[0].number - EVENT_ROUNDS_KEPT}
