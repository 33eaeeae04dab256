"""What key holders ask for, and the shares that they release."""

from __future__ import annotations

import re
from functools import partial
from typing import cast, get_args

from aiohttp import web

from he_protocol.api import Heads, Opening, PendingOpenings, Waiting
from he_protocol.identity import Party, check_signed
from he_protocol.messages import Manifest, Objection, Screening, Share, SignedUpdate, Vote
from he_protocol.problems import (
    BAD_SIGNATURE,
    MALFORMED,
    MANIFEST_MISMATCH,
    NOT_ADDRESSED,
    NOT_CERTIFIED,
    REQUEST_TIMEOUT,
    WRONG_SHARE,
    WRONG_STATE,
    Refusal,
)
from he_protocol.signing import TOKEN_LIMIT, message_kind, read_unverified
from he_protocol.task import Task
from he_server.answers import Piece, answer, stream_pieces
from he_server.auth import Member, check_member, check_self, party_of
from he_server.bodies import Sender, share_frame
from he_server.handlers.rounds import round_number
from he_server.handlers.tasks import task_of
from he_server.intake import Frame, Section, receive, recording
from he_server.names import fresh, key_blob, share_blob
from he_server.rounds import check_binding, stage_of
from he_server.server import Server
from he_server.store.records import AnswerRecord, Kind, RoundRecord, UpdateRecord
from he_server.streams import news

MAX_WAIT = 60
"""How long a holder may wait for news in one request, in seconds."""


async def list_openings(server: Server, request: web.Request) -> web.StreamResponse:
    """What waits for a holder; as soon as that is something else than it knows, if it prefers so (RFC 7240)."""
    task, party = await task_of(server, request), party_of(request)
    name = check_member(task, party).entry.name
    tags = {f'"{tag.value}"' for tag in request.if_none_match or ()}

    def mine(waiting: dict[str, tuple[Waiting, ...]]) -> PendingOpenings:
        return PendingOpenings(waiting[name])

    async def read() -> PendingOpenings:
        return mine(await server.store.waiting(task))

    def known(pending: PendingOpenings) -> bool:
        return pending.etag in tags

    pending, seconds = await read(), preferred_wait(request.headers.get("Prefer", ""))
    if known(pending) and seconds:
        with server.waiting.listening(task.id, task.hash + party.public) as watch:
            pending = await news(watch, mine, read, known, seconds)
    headers = {"ETag": pending.etag, "Cache-Control": "no-store"}
    return web.Response(status=304, headers=headers) if known(pending) else answer(pending, headers=headers)


def preferred_wait(prefer: str) -> int:
    """Seconds that a Prefer header asks to wait, at most MAX_WAIT; 0 where it does not (RFC 7240 section 4.3)."""
    found = re.fullmatch(r"wait=([0-9]{1,6})", prefer.strip())
    return min(int(found[1]), MAX_WAIT) if found else 0


async def get_opening(server: Server, request: web.Request) -> web.StreamResponse:
    task, record = await _waiting(server, request)
    votes = await _votes(server, record)
    stage = stage_of(record.state, len(votes), task.committee.agreement)
    return answer(Opening(stage, record.manifest, votes, (await server.revocations()).token))


async def get_heads(server: Server, request: web.Request) -> web.StreamResponse:
    _, record = await _waiting(server, request)
    return answer(Heads(tuple(SignedUpdate(u.header, u.credential) for u in await _listed(server, record))))


async def get_key_parts(server: Server, request: web.Request) -> web.StreamResponse:
    task, record = await _waiting(server, request)
    part = task.part("key")
    listed = await _listed(server, record)
    pieces = [Piece(key_blob(update.blob), update.position * part.size, part.size) for update in listed]
    return await stream_pieces(server, request, pieces, zeros=True)  # holders leave out what is not as it was signed


async def sender_of_answer(server: Server, request: web.Request) -> Sender:
    task, party = await task_of(server, request), party_of(request)
    check_member(task, party)
    return Sender(party.public, TOKEN_LIMIT)


async def put_answer(server: Server, request: web.Request) -> web.StreamResponse:
    """A holder's screening, vote or objection: the message's type says which."""
    task = await task_of(server, request)
    party = party_of(request)
    check_member(task, party)
    check_self(party, request.match_info["holder"])
    record = await server.store.round(task.id, round_number(request))
    body = await Frame(request.content, TOKEN_LIMIT, request.content_length).body(TOKEN_LIMIT)
    try:
        token = body.decode("ascii")
    except UnicodeDecodeError:
        raise Refusal(MALFORMED, "the answer is not a compact JWS") from None
    said = await server.thread(read_answer, task, record, token, party, server.clock())
    created = await server.store.add_answer(task, record, said)
    if created:
        server.heard(task.id)
    return answer(record.status(), 201 if created else 200)


def read_answer(task: Task, record: RoundRecord, token: str, party: Party, now: float) -> AnswerRecord:
    """What a holder says about a round's manifest, once signature and binding are checked.

    Raises `bad-signature`, `not-addressed`, `wrong-task` or `wrong-epoch`.
    """
    kind = kind_of(token)
    if kind == "vote":
        vote = check_signed(token, Vote, party, "holder")
        check_binding(task, vote.task_hash, vote.epoch)
        if vote.opening != record.opening:
            raise Refusal(NOT_ADDRESSED, "the vote is for another opening", expected=record.opening, got=vote.opening)
        return AnswerRecord(party.name, kind, vote.manifest.hex(), token, "", "", now)
    if kind == "screening":
        screening = check_signed(token, Screening, party, "holder")
        check_binding(task, screening.task_hash, screening.epoch)
        named, detail, problem, manifest = screening.round, "", "", screening.manifest
    else:
        objection = check_signed(token, Objection, party, "holder")
        check_binding(task, objection.task_hash, objection.epoch)
        named, detail, problem, manifest = objection.round, objection.detail, objection.problem, objection.manifest
    if named != record.number:
        raise Refusal(NOT_ADDRESSED, "the path names another round", expected=named, got=record.number)
    return AnswerRecord(party.name, kind, manifest.hex(), token, problem, detail, now)


def kind_of(token: str) -> Kind:
    """What a holder's answer says it is; its signature is not checked. Raises `bad-signature` for anything else."""
    named = message_kind(token)
    for kind in get_args(Kind):
        if kind == named:
            return cast(Kind, kind)
    raise Refusal(BAD_SIGNATURE, "not an answer to a manifest", expected="screening, vote or objection", got=named[:80])


async def _votes(server: Server, record: RoundRecord) -> tuple[str, ...]:
    """The votes for a round's manifest as it is now."""
    said = await server.store.answers_of(record.id)
    return tuple(a.token for a in said if a.kind == "vote" and a.manifest_hash == record.manifest_hash)


async def _listed(server: Server, record: RoundRecord) -> list[UpdateRecord]:
    """The updates in a round's manifest, in its order."""
    out = {one.update for one in record.excluded}
    return [update for update in await server.store.updates_of(record.id) if update.update_id not in out]


async def _waiting(server: Server, request: web.Request) -> tuple[Task, RoundRecord]:
    """Task and round, where that waits for key holders."""
    task = await task_of(server, request)
    check_member(task, party_of(request))
    record = await server.store.round(task.id, round_number(request))
    if not record.manifest or record.state not in {"closed", "opening"}:
        raise Refusal(WRONG_STATE, "the round does not wait for key holders", got=record.state)
    return task, record


async def sender_of_share(server: Server, request: web.Request) -> Sender:
    task, party = await task_of(server, request), party_of(request)
    known = task.sharing.parts_of(check_member(task, party).index)
    return Sender(party.public, share_frame(task, len(known)))


async def put_share(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    party = party_of(request)
    member = check_member(task, party)
    check_self(party, request.match_info["holder"])
    record = await server.store.round(task.id, round_number(request))
    frame = Frame(request.content, server.settings.max_update_bytes, request.content_length)
    token = await frame.token()
    share = check_signed(token, Share, party, "holder")
    if await server.store.has_share(record.id, share.holder, token):
        return answer(record.status())
    await server.thread(check_share, task, record, member, share)
    if len(await _votes(server, record)) < task.committee.agreement:
        raise Refusal(NOT_CERTIFIED, "shares come after votes", expected=f"{task.committee.agreement} votes")
    layout = task.scheme.share_layout(task.length)
    blob = fresh()
    name = share_blob(blob)
    sections = [
        Section(f"{entry.part} of bucket {entry.bucket}", name, layout.size, entry.sha256, layout)
        for entry in share.parts
    ]
    await receive(server, frame, sections)
    async with recording(server, name):
        kept = partial(server.check_kept, name, REQUEST_TIMEOUT) if sections else _nothing_to_keep
        created = await server.store.add_share(task, share, token, blob, server.clock(), kept)
    if created:
        server.heard(task.id)
    else:
        await server.thread(server.blobs.delete, name)
    status = (await server.store.round(task.id, record.number)).status()
    return answer(status, 201 if created else 200)


async def _nothing_to_keep() -> None:
    """A share that leaves every bucket closed has no bytes."""


def check_share(task: Task, record: RoundRecord, member: Member, share: Share) -> None:
    """What a share must be bound to, before its vectors are read.

    Raises `wrong-task`, `wrong-epoch`, `not-addressed`, `wrong-state`, `manifest-mismatch` or `wrong-share`.
    """
    check_binding(task, share.task_hash, share.epoch)
    if share.round != record.number:
        raise Refusal(NOT_ADDRESSED, "the path names another round", expected=share.round, got=record.number)
    if record.state != "opening":
        raise Refusal(WRONG_STATE, "the round does not wait for shares", expected="opening", got=record.state)
    if share.manifest.hex() != record.manifest_hash:
        raise Refusal(
            MANIFEST_MISMATCH,
            "the share is for another manifest",
            expected=record.manifest_hash,
            got=share.manifest.hex(),
        )
    manifest = read_unverified(record.manifest, Manifest)
    buckets = {entry.update_id: entry.bucket for entry in manifest.updates}
    failed = [entry.bucket for entry in share.failed]
    if len(set(failed)) != len(failed) or any(buckets.get(f.update_id) != f.bucket for f in share.failed):
        raise Refusal(WRONG_SHARE, "a failed bucket stands twice, or without an update of its own", got=failed)
    opened, known = sorted(set(buckets.values()) - set(failed)), task.sharing.parts_of(member.index)
    got = [(entry.bucket, entry.part) for entry in share.parts]
    if got != [(bucket, part) for bucket in opened for part in known]:
        raise Refusal(
            WRONG_SHARE,
            "not every part that this holder knows, of every bucket in turn",
            expected=f"parts {known} of buckets {opened}",
            got=f"{len(got)} parts: {got[: len(known) + 1]}",
        )
