"""What rounds are doing, and the sums that came of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from he_protocol.api import RoundStatus
from he_protocol.problems import NOT_FOUND, WRONG_STATE, Refusal
from he_protocol.task import Task
from he_server.answers import STREAMING, answer, stream_blob
from he_server.handlers.tasks import task_of
from he_server.names import sum_blob
from he_server.server import Server
from he_server.store import Store
from he_server.store.records import RoundRecord, committee_status

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
    return answer(await statuses(server.store, task, await server.store.recent_rounds(task.id)))


async def get_round(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    (status,) = await statuses(server.store, task, [await server.store.round(task.id, round_number(request))])
    return answer(status)


async def statuses(store: Store, task: Task, records: Sequence[RoundRecord]) -> list[RoundStatus]:
    """Rounds with what their key holders said."""
    said = await store.said_about(records)
    return [record.status(committee_status(task, record, *said[record.id])) for record in records]


def waiting_for(status: RoundStatus) -> str:
    """What key holders said about a round that waits for them."""
    if status.state not in {"closed", "opening"}:
        return ""
    return "; ".join(
        f"{one.holder}: {f'refused ({one.detail})' if one.problem else one.said or 'missing'}"
        for one in status.committee
    )


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
                (status,) = await statuses(server.store, task, [record])
                data = msgspec.json.encode(status).decode()
                await response.write(f"event: round\nid: {record.number}\ndata: {data}\n\n".encode())
        if server.draining:
            return response
        await server.notifier.wait(task.id, EVENT_SECONDS)
        await response.write(b": still here\n\n")  # finds out when the reader has gone
        recent = await server.store.recent_rounds(task.id)
        told = {number: state for number, state in told.items() if number > recent[0].number - EVENT_ROUNDS_KEPT}
