"""An update from its frame into the open round: checked, made durable, acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party, check_credential, check_signed, issued_by
from he_protocol.identity.jws import SigningKey, token_hash
from he_protocol.identity.revocation import check_key
from he_protocol.messages import Receipt, SignedUpdate, UpdateHeader, from_json
from he_protocol.problems import NOT_ADDRESSED
from he_protocol.task import Task
from he_server.blobs.keys import fresh, key_blob, update_blob
from he_server.rules.admission import SHARED_BLOB_BYTES
from he_server.rules.records import Accepted
from he_server.rules.updates import check_header, check_lasting
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.receive import BodySection, check_body, delete_blobs, keep_or_delete, receive
from he_server.store.updates import NewUpdate


async def accept(server: ServerContext, task: Task, update_id: bytes, party: Party, frame: Frame) -> Accepted:
    """Check a frame that `party` sent and put its update into the open round, or find that it is there already.

    Counts the outcome. Raises whatever is wrong with it.
    """
    try:
        accepted = await _accept(server, task, update_id, party, frame)
    except ProblemError as refusal:
        server.metrics.updates.labels(refusal.problem.slug).inc()
        raise
    server.metrics.updates.labels("accepted" if accepted.created else "repeated").inc()
    if accepted.created:
        server.news.notify(task.id)
    return accepted


async def _accept(server: ServerContext, task: Task, update_id: bytes, party: Party, frame: Frame) -> Accepted:
    signed, now = from_json(await frame.head(), SignedUpdate), server.clock()
    header = await server.threads.signatures(lambda: check_signed_update(signed, party, server.keys.authority, now))
    # Once more, because a resumable upload was not authenticated by HTTP.
    check_key(await server.revocations.current(), party.name, party.public)
    check_header(task, header, update_id, now)
    check_lasting(task, issued_by(server.keys.authority, signed.credential).exp, now)
    size = sum(section.size for section in task.body)
    if size <= SHARED_BLOB_BYTES:
        body = await frame.whole(size)
        server.metrics.received.inc(size)

        def check_and_offer() -> NewUpdate:
            sections = check_body(body, _sections(task, header, {"sum": "sum", "key": "key"}))
            return replace(_offer(server.keys.own.signing, task, signed, header, now), sections=sections)

        return await server.committer(task, await server.threads.bodies(check_and_offer))
    offered = _offer(server.keys.own.signing, task, signed, header, now)
    before = await server.store.updates.expect(task, offered)
    if before is not None:
        return before
    offered = replace(offered, blob=fresh())
    blobs = {"sum": update_blob(offered.blob), "key": key_blob(offered.blob)}
    await receive(server, frame, _sections(task, header, blobs))
    async with keep_or_delete(server, *blobs.values()):
        accepted = await server.committer(task, offered)
    if not accepted.created:
        await delete_blobs(server, blobs.values())
    return accepted


def _offer(key: SigningKey, task: Task, signed: SignedUpdate, header: UpdateHeader, now: float) -> NewUpdate:
    digest = token_hash(signed.header)
    return NewUpdate(
        update_id=header.update_id.hex(),
        client=header.client,
        header=signed.header,
        header_hash=digest.hex(),
        credential=signed.credential,
        base_version=header.base_version,
        receipt=key.sign(Receipt(task.hash, header.update_id, header.client, digest, int(now))),
    )


def _sections(task: Task, header: UpdateHeader, blobs: Mapping[str, str]) -> list[BodySection]:
    return [
        BodySection(section.name, blobs[section.role], section.size, sent.sha256, section.layout)
        for section, sent in zip(task.body, header.sections, strict=True)
    ]


def check_signed_update(signed: SignedUpdate, party: Party, authority: bytes, now: float) -> UpdateHeader:
    """The header of an update, once credential, signature and requester agree."""
    client = check_credential(signed.credential, authority, "client", now)
    if client != party:
        raise ProblemError(NOT_ADDRESSED, "the update is another client's", expected=party.name, got=client.name)
    return check_signed(signed.header, UpdateHeader, client, "client")
