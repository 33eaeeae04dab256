"""The board of a key ceremony: a dumb list of signed posts, one per holder and phase."""

from __future__ import annotations

from aiohttp import web

from he_protocol.documents import PHASES, Board, BoardEntry, Phase
from he_protocol.errors import ProblemError
from he_protocol.problems import NOT_FOUND
from he_server.blobs.keys import post_blob
from he_server.http.auth import party_of
from he_server.http.params import task_of
from he_server.http.responses import answer, stream_blob
from he_server.rules.board import POST_LIMIT
from he_server.rules.bodies import FRAME_HEAD_BYTES, Sender
from he_server.rules.committee import check_member, check_self
from he_server.services.board import accept_post
from he_server.services.context import ServerContext
from he_server.services.frames import Frame


def phase_of(request: web.Request) -> Phase:
    """The phase that the path names. Raises `not-found`."""
    wanted = request.match_info["phase"]
    for phase in PHASES:
        if phase == wanted:
            return phase
    raise ProblemError(NOT_FOUND, "no such phase", expected=", ".join(PHASES), got=wanted[:80])


async def list_posts(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    phase = phase_of(request)
    posts = await server.store.board.posts(task.id, phase)
    return answer(Board(phase, tuple(BoardEntry(post.holder, post.message, post.size) for post in posts)))


async def get_post(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    post = await server.store.board.post(task.id, phase_of(request), request.match_info["holder"])
    return await stream_blob(server, request, post_blob(task.id, post.blob))


async def sender_of_post(server: ServerContext, request: web.Request) -> Sender:
    party = party_of(request)
    check_member(await task_of(server.tasks, request), party)
    return Sender(party.public, FRAME_HEAD_BYTES + POST_LIMIT)


async def put_post(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    phase = phase_of(request)
    party = party_of(request)
    check_member(task, party)
    check_self(party, request.match_info["holder"])
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    entry, created = await accept_post(server, task, phase, party, frame)
    return answer(entry, 201 if created else 200)
