"""The board of a key ceremony: a dumb list of signed posts, one per holder and phase."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from he_protocol.documents import PHASES, Board, BoardEntry, Phase
from he_protocol.identity.credentials import Party, check_signed
from he_protocol.messages import Commitment, Confirmation, Contribution, Reveal
from he_protocol.problems import NOT_FOUND, Refusal
from he_server.blobs.keys import fresh, post_blob
from he_server.http.auth import party_of
from he_server.http.params import task_of
from he_server.http.responses import answer, stream_blob
from he_server.rules.bodies import FRAME_ROOM, Sender
from he_server.rules.committee import check_member, check_self
from he_server.rules.records import PostRecord
from he_server.rules.updates import check_binding
from he_server.services.context import Server
from he_server.services.frames import Frame
from he_server.services.receive import keep_body, recording
from he_server.store.tasks import check_same_post

POST_LIMIT = 64 * 1024 * 1024
"""Bytes of one post's body: the key parts of the largest committee fit."""


class Bound(Protocol):
    """What the messages of all phases have."""

    @property
    def task_hash(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...


def phase_of(request: web.Request) -> Phase:
    """The phase that the path names. Raises `not-found`."""
    wanted = request.match_info["phase"]
    for phase in PHASES:
        if phase == wanted:
            return phase
    raise Refusal(NOT_FOUND, "no such phase", expected=", ".join(PHASES), got=wanted[:80])


async def list_posts(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    phase = phase_of(request)
    posts = await server.store.posts(task.id, phase)
    return answer(Board(phase, tuple(BoardEntry(post.holder, post.message, post.size) for post in posts)))


async def get_post(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    post = await server.store.post(task.id, phase_of(request), request.match_info["holder"])
    return await stream_blob(server, request, post_blob(task.id, post.blob))


async def sender_of_post(server: Server, request: web.Request) -> Sender:
    party = party_of(request)
    check_member(await task_of(server, request), party)
    return Sender(party.public, FRAME_ROOM + POST_LIMIT)


async def put_post(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    phase = phase_of(request)
    party = party_of(request)
    check_member(task, party)
    check_self(party, request.match_info["holder"])
    if not task.scheme.ceremony:
        raise Refusal(NOT_FOUND, f"scheme {task.config.scheme} has no key ceremony")
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    token = await frame.token()
    message = read_post(phase, token, party)
    check_binding(task, message.task_hash, message.epoch)
    before = [post for post in await server.store.posts(task.id, phase) if post.holder == party.name]
    if before:
        check_same_post(before[0].message, token, phase)
        return answer(BoardEntry(party.name, token, before[0].size))
    blob = fresh()
    name = post_blob(task.id, blob)
    post = PostRecord(party.name, token, await keep_body(server, frame, name, POST_LIMIT), blob)
    async with recording(server, name):
        created = await server.store.post_to_board(task.id, phase, post)
    if not created:
        await server.thread(server.blobs.delete, name)
    return answer(BoardEntry(post.holder, token, post.size), 201 if created else 200)


def read_post(phase: Phase, token: str, party: Party) -> Bound:
    """A phase's message, signed by the holder that posts it. Raises `bad-signature` or `not-addressed`."""
    match phase:
        case "contribution":
            return check_signed(token, Contribution, party, "holder")
        case "commitment":
            return check_signed(token, Commitment, party, "holder")
        case "reveal":
            return check_signed(token, Reveal, party, "holder")
        case "confirmation":
            return check_signed(token, Confirmation, party, "holder")
