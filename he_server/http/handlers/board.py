"""The board of a key ceremony: a dumb list of signed posts, one per holder and phase."""

from __future__ import annotations

from aiohttp import web

from he_protocol.documents import Board, BoardEntry
from he_server.blobs.keys import post_blob
from he_server.http.auth import party_of
from he_server.http.params import task_of
from he_server.http.responses import answer, stream_blob
from he_server.rules.board import POST_LIMIT, check_phase
from he_server.rules.bodies import FRAME_HEAD_BYTES, Sender
from he_server.rules.committee import check_member, check_self
from he_server.services.board import accept_post
from he_server.services.context import ServerContext
from he_server.services.frames import Frame


async def list_posts(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    phase = request.match_info["phase"]
    check_phase(task, phase)
    posts = await server.store.board.posts(task.id, phase)
    return answer(Board(phase, tuple(BoardEntry(post.holder, post.message, post.size) for post in posts)))


async def get_post(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    phase = request.match_info["phase"]
    check_phase(task, phase)
    post = await server.store.board.post(task.id, phase, request.match_info["holder"])
    return await stream_blob(server, request, post_blob(task.id, post.blob))


async def sender_of_post(server: ServerContext, request: web.Request) -> Sender:
    party = party_of(request)
    check_member(await task_of(server.tasks, request), party)
    return Sender(party.public, FRAME_HEAD_BYTES + POST_LIMIT)


async def put_post(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    party = party_of(request)
    check_member(task, party)
    check_self(party, request.match_info["holder"])
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    entry, created = await accept_post(server, task, request.match_info["phase"], party, frame)
    return answer(entry, 201 if created else 200)
