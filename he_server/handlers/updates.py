"""Uploads of clients, and what key holders fetch of them."""

from __future__ import annotations

from aiohttp import web

from he_protocol.api import UpdateReceipt, UpdateStatus
from he_protocol.identity import Party, check_credential, check_signed
from he_protocol.messages import Receipt, SignedUpdate, UpdateHeader, decode
from he_protocol.problems import NOT_ADDRESSED, Refusal
from he_protocol.signing import token_hash
from he_protocol.task import Task
from he_server.answers import answer
from he_server.auth import hex_id, party_of
from he_server.handlers.tasks import task_of
from he_server.intake import Frame, Section, receive, recording
from he_server.names import fresh, update_blob
from he_server.rounds import check_header
from he_server.server import Server
from he_server.store.records import Accepted
from he_server.store.updates import NewUpdate


async def put_update(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    update_id = hex_id(request.match_info["update"], 16, "update")
    try:
        accepted = await _accept(server, request, task, update_id)
    except Refusal as refusal:
        server.metrics.updates.labels(refusal.problem.slug).inc()
        raise
    server.metrics.updates.labels("accepted" if accepted.created else "repeated").inc()
    if accepted.created:
        server.notifier.notify(task.id)
    return answer(UpdateReceipt(accepted.receipt, accepted.round), 201 if accepted.created else 200)


async def get_update(server: Server, request: web.Request) -> web.StreamResponse:
    task = await task_of(server, request)
    update_id = hex_id(request.match_info["update"], 16, "update").hex()
    update, current = await server.store.update_status(task.id, update_id, party_of(request).name)
    return answer(UpdateStatus(update.update_id, current.number, current.state, current.version, current.failure))


async def _accept(server: Server, request: web.Request, task: Task, update_id: bytes) -> Accepted:
    frame = Frame(request, server.settings.max_update_bytes)
    signed = decode(await frame.head(), SignedUpdate)
    now = server.clock()
    header = check_signed_update(signed, party_of(request), server.authority, now)
    check_header(task, header, update_id, now)
    digest = token_hash(signed.header)
    receipt = Receipt(task.hash, update_id, header.client, digest, int(now))
    offered = NewUpdate(
        update_id=update_id.hex(),
        client=header.client,
        header=signed.header,
        header_hash=digest.hex(),
        credential=signed.credential,
        base_version=header.base_version,
        receipt=server.key.signing.sign(receipt),
        blob=fresh(),
    )
    before = await server.store.expect_update(task, offered)
    if before is not None:
        return before
    wanted = zip(task.body, header.parts, strict=True)
    sections = [Section(part.name, part.size, sent.sha256, part.layout) for part, sent in wanted]
    name = update_blob(offered.blob)
    await receive(server, frame, name, sections)
    async with recording(server, name):
        accepted = await server.store.accept_update(task, offered, server.clock())
    if not accepted.created:
        await server.thread(server.blobs.delete, name)
    return accepted


def check_signed_update(signed: SignedUpdate, party: Party, authority: bytes, now: float) -> UpdateHeader:
    """The header of an update, once credential, signature and requester agree."""
    client = check_credential(signed.credential, authority, "client", now)
    if client != party:
        raise Refusal(NOT_ADDRESSED, "the update is another client's", expected=party.name, got=client.name)
    return check_signed(signed.header, UpdateHeader, client, "client")
