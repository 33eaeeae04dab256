"""What key holders ask for, and the shares that they release."""

from __future__ import annotations

import re

from aiohttp import web

from he_protocol.documents import Heads, Opening, PendingOpenings, Waiting
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import TOKEN_LIMIT
from he_protocol.messages import SignedUpdate
from he_protocol.problems import MALFORMED, WRONG_STATE
from he_protocol.task import Task
from he_server.blobs.keys import key_blob
from he_server.http.auth import party_of
from he_server.http.params import round_number, task_of
from he_server.http.responses import Piece, answer, stream_pieces
from he_server.rules.bodies import Sender, share_frame
from he_server.rules.committee import check_member, check_self
from he_server.rules.records import RoundRecord
from he_server.rules.rounds import stage_of
from he_server.services.answers import accept_answer, listed_updates, votes_for
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.shares import accept_share
from he_server.services.streams import news

MAX_WAIT = 60
"""How long a holder may wait for news in one request, in seconds."""


async def list_openings(server: ServerContext, request: web.Request) -> web.StreamResponse:
    """What waits for a holder; as soon as that is something else than it knows, if it prefers so (RFC 7240)."""
    task, party = await task_of(server.tasks, request), party_of(request)
    name = check_member(task, party).entry.name
    tags = {f'"{tag.value}"' for tag in request.if_none_match or ()}

    def mine(waiting: dict[str, tuple[Waiting, ...]]) -> PendingOpenings:
        return PendingOpenings(waiting[name])

    async def read() -> PendingOpenings:
        return mine(await server.news.pending(task))

    def known(pending: PendingOpenings) -> bool:
        return pending.etag in tags

    seconds = preferred_wait(request.headers.get("Prefer", ""))
    if tags and seconds:
        with server.news.waiting.listening(task.id, task.hash + party.public) as watch:
            pending = await news(watch, mine, read, known, seconds)
    else:
        pending = await read()
    headers = {"ETag": pending.etag, "Cache-Control": "no-store"}
    return web.Response(status=304, headers=headers) if known(pending) else answer(pending, headers=headers)


def preferred_wait(prefer: str) -> int:
    """Seconds that a Prefer header asks to wait, at most MAX_WAIT; 0 where it does not (RFC 7240 section 4.3)."""
    found = re.fullmatch(r"wait=([0-9]{1,6})", prefer.strip())
    return min(int(found[1]), MAX_WAIT) if found else 0


async def get_opening(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task, record = await _waiting(server, request)
    votes = await votes_for(server.store.answers, record)
    stage = stage_of(record.state, len(votes), task.committee.agreement)
    return answer(Opening(stage, record.manifest, votes, (await server.revocations.current()).token))


async def get_heads(server: ServerContext, request: web.Request) -> web.StreamResponse:
    _, record = await _waiting(server, request)
    listed = await listed_updates(server.store.updates, record)
    return answer(Heads(tuple(SignedUpdate(u.header, u.credential) for u in listed)))


async def get_key_sections(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task, record = await _waiting(server, request)
    section = task.section("key")
    listed = await listed_updates(server.store.updates, record)
    pieces = [Piece(key_blob(update.blob), update.position * section.size, section.size) for update in listed]
    return await stream_pieces(server, request, pieces, zeros=True)  # holders leave out what is not as it was signed


async def sender_of_answer(server: ServerContext, request: web.Request) -> Sender:
    task, party = await task_of(server.tasks, request), party_of(request)
    check_member(task, party)
    return Sender(party.public, TOKEN_LIMIT)


async def put_answer(server: ServerContext, request: web.Request) -> web.StreamResponse:
    """A holder's screening, vote or objection: the message's type says which."""
    task = await task_of(server.tasks, request)
    party = party_of(request)
    check_member(task, party)
    check_self(party, request.match_info["holder"])
    record = await server.store.rounds.get(task.id, round_number(request))
    body = await Frame(request.content, TOKEN_LIMIT, request.content_length).body(TOKEN_LIMIT)
    try:
        token = body.decode("ascii")
    except UnicodeDecodeError:
        raise ProblemError(MALFORMED, "the answer is not a compact JWS") from None
    created = await accept_answer(server, task, record, party, token)
    return answer(record.status(), 201 if created else 200)


async def _waiting(server: ServerContext, request: web.Request) -> tuple[Task, RoundRecord]:
    """Task and round, where that waits for key holders."""
    task = await task_of(server.tasks, request)
    check_member(task, party_of(request))
    record = await server.store.rounds.get(task.id, round_number(request))
    if not record.manifest or record.state not in {"closed", "opening"}:
        raise ProblemError(WRONG_STATE, "the round does not wait for key holders", got=record.state)
    return task, record


async def sender_of_share(server: ServerContext, request: web.Request) -> Sender:
    task, party = await task_of(server.tasks, request), party_of(request)
    known = task.sharing.subshares_of(check_member(task, party).index)
    return Sender(party.public, share_frame(task, len(known)))


async def put_share(server: ServerContext, request: web.Request) -> web.StreamResponse:
    task = await task_of(server.tasks, request)
    party = party_of(request)
    member = check_member(task, party)
    check_self(party, request.match_info["holder"])
    record = await server.store.rounds.get(task.id, round_number(request))
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    created = await accept_share(server, task, record, member, party, frame)
    return answer((await server.store.rounds.get(task.id, record.number)).status(), 201 if created else 200)
