"""Resumable uploads: begun, appended to, and offered as a whole once their bytes are all there."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party
from he_protocol.problems import NOT_FOUND
from he_protocol.task import Task
from he_server.blobs.keys import fresh
from he_server.blobs.store import Upload
from he_server.blobs.upload_file import BLOCK_BYTES, UploadSource
from he_server.rules.uploads import check_chunk, check_fits
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.submit import accept
from he_server.services.threads import Threads
from he_server.store.uploads import UploadRecord


async def begin_upload(server: ServerContext, task: Task, party: Party, update_id: bytes, length: int) -> UploadRecord:
    """A new upload of an update, of `length` bytes; the one that stands if its client began it before.

    Raises `too-many-uploads`, `overloaded` or `disk-full`.
    """
    now = server.clock()
    new = UploadRecord(
        id=fresh(),
        task_hash=task.id,
        update_id=update_id.hex(),
        client=party.name,
        public=party.public.hex(),
        length=length,
        created=now,
        expires=now + server.settings.upload_seconds,
    )
    free_bytes = (await server.admission.load()).free - server.settings.min_free_bytes
    upload = await server.store.uploads.begin(new, server.settings.max_uploads_per_client, free_bytes)
    if not upload.ended:
        await server.threads.run(server.uploads.create, upload.id)
    return upload


@asynccontextmanager
async def opened_upload(server: ServerContext, upload_id: str) -> AsyncIterator[tuple[UploadRecord, Upload | None]]:
    """An upload with its file and the file's lock; without them when it has ended.

    Raises `not-found`, `upload-expired` or `upload-locked`.
    """
    file = server.uploads.upload(upload_id)
    try:
        found = await server.threads.run(file.open)
        # Nothing else can end it while we hold the lock.
        upload = await server.store.uploads.get(upload_id, server.clock())
        if not found and not upload.ended:
            raise ProblemError(NOT_FOUND, "the upload's bytes are gone")
        yield upload, None if upload.ended else file
    finally:
        await server.threads.run(file.close)


async def append_chunk(
    threads: Threads,
    upload: UploadRecord,
    file: Upload,
    body: AsyncIterable[bytes],
    wanted: tuple[str, bytes] | None,
) -> None:
    """Append a body and make it durable: also the beginning of one that breaks off. A refusal leaves nothing.

    wanted: an algorithm, and the digest that the body must have. Raises `too-large`, `checksum-mismatch`, `disk-full`.
    """
    start = file.size
    digest = hashlib.new(wanted[0], usedforsecurity=False) if wanted is not None else None
    held = bytearray()

    def write(block: bytes) -> None:
        file.append(block)
        if digest is not None:
            digest.update(block)

    async def flush() -> None:
        block = bytes(held)
        held.clear()  # first: a request that is cancelled while it writes must not write this again
        await threads.run(write, block)

    try:
        async for piece in body:
            held += piece
            check_fits(upload.length, file.size, len(held))
            if len(held) >= BLOCK_BYTES:
                await flush()
        await flush()
        if wanted is not None and digest is not None:
            check_chunk(wanted[1], digest.digest())
    except ProblemError:
        held.clear()
        await threads.run(file.truncate, start)
        raise
    finally:
        await flush()
        if file.size != start:
            await threads.run(file.sync)


async def complete_upload(server: ServerContext, upload: UploadRecord, file: Upload) -> UploadRecord:
    """Offer a frame whose bytes are all there as the PUT of an update would; how that ended is kept.

    Raises the refusals after which the same bytes may pass; then they stay, for the next request to try.
    """
    task = await server.tasks.get(upload.task_hash)
    frame = Frame(UploadSource(file), server.settings.max_update_bytes, upload.length)
    try:
        accepted = await accept(server, task, bytes.fromhex(upload.update_id), upload.party, frame)
        ended = replace(upload, receipt=accepted.receipt, round=accepted.round)
    except ProblemError as refusal:
        if refusal.problem.may_pass:
            raise
        ended = replace(upload, problem=refusal.document().decode())
    await server.store.uploads.end(ended)
    await server.threads.run(server.uploads.delete, upload.id)
    return ended


async def forget_upload(server: ServerContext, upload: UploadRecord) -> None:
    """Drop an upload and its bytes."""
    await server.threads.run(server.uploads.delete, upload.id)
    await server.store.uploads.drop(upload.id)
