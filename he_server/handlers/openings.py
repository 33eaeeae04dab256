"""What key holders ask for, and the shares that they release."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from he_protocol.api import Opening, PendingOpenings
from he_protocol.identity import check_signed
from he_protocol.messages import Manifest, Share, SignedUpdate
from he_protocol.problems import MANIFEST_MISMATCH, NOT_ADDRESSED, REQUEST_TIMEOUT, WRONG_SHARE, WRONG_STATE, Refusal
from he_protocol.signing import read_unverified
from he_protocol.task import Task
from he_server.answers import Piece, answer, stream_pieces
from he_server.auth import Member, check_member, check_self, party_of
from he_server.bodies import Sender, share_frame
from he_server.handlers.rounds import round_number
from he_server.handlers.tasks import task_of
from he_server.intake import Frame, Section, receive, recording
from he_server.names import fresh, key_blob, share_blob
from he_server.rounds import check_binding
from he_server.server import Server
from he_server.store.records import RoundRecord, UpdateRecord


async def list_openings(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    member = check_member(task, party_of(request))
    return answer(PendingOpenings(await server.store.pending_openings(task.id, member.entry.name)))


async def get_opening(server: Server, request: web.Request) -> web.StreamResponse:
    _, record, updates = await _waiting(server, request)
    heads = tuple(SignedUpdate(u.header, u.credential) for u in updates)
    return answer(Opening(record.manifest, heads, (await server.revocations()).token))


async def get_key_parts(server: Server, request: web.Request) -> web.StreamResponse:
    task, _, updates = await _waiting(server, request)
    part = task.part("key")
    pieces = [Piece(key_blob(update.blob), update.position * part.size, part.size) for update in updates]
    return await stream_pieces(server, request, pieces)


async def _waiting(server: Server, request: web.Request) -> tuple[Task, RoundRecord, tuple[UpdateRecord, ...]]:
    """Task, round and updates (in the manifest's order) of a round that waits for shares."""
    task = await task_of(server, request)
    check_member(task, party_of(request))
    record = await server.store.round(task.id, round_number(request))
    if record.state != "opening":
        raise Refusal(WRONG_STATE, "the round does not wait for shares", expected="opening", got=record.state)
    return task, record, await server.store.updates_of(record.id)


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
    layout = task.scheme.share_layout(task.length)
    blob = fresh()
    name = share_blob(blob)
    sections = [
        Section(f"{entry.part} of bucket {entry.bucket}", name, layout.size, entry.sha256, layout)
        for entry in share.parts
    ]
    await receive(server, frame, sections)
    async with recording(server, name):
        kept = partial(server.check_kept, name, REQUEST_TIMEOUT)
        created = await server.store.add_share(task, share, token, blob, server.clock(), kept)
    if created:
        server.notifier.notify(task.id)
    else:
        await server.thread(server.blobs.delete, name)
    status = (await server.store.round(task.id, record.number)).status()
    return answer(status, 201 if created else 200)


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
