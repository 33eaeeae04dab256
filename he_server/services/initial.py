"""A task's initial model as anybody may send it: it is decided what it is before it is written, or not written at all.

It comes in the one form that is stored, so that its bytes have one hash, and is never whole in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from he_protocol.errors import ProblemError
from he_protocol.problems import DIGEST_MISMATCH, OVERLOADED
from he_protocol.task import Task
from he_protocol.tensors import MODEL_HEADER_BYTES
from he_server.blobs.keys import model_blob
from he_server.blobs.store import BlobWriter
from he_server.blobs.tensor_file import check_finite, check_header, header_size, model_file
from he_server.services.context import ServerContext
from he_server.services.frames import Frame
from he_server.services.receive import gathered
from he_server.services.threads import Threads


@contextmanager
def adding(under_way: set[str], task: Task) -> Iterator[None]:
    """Around writing a task's initial model: one at a time. Raises `overloaded`."""
    if task.id in under_way:
        raise ProblemError(OVERLOADED, "the task is just being added")
    under_way.add(task.id)
    try:
        yield
    finally:
        under_way.discard(task.id)


def check_model(task: Task, got: str) -> None:
    """Raises `digest-mismatch` unless a model has the SHA-256 (here in hex) that the authority signed."""
    if got != (expected := task.config.model.initial_model.hex()):
        raise ProblemError(DIGEST_MISMATCH, "the initial model", expected=expected, got=got)


async def read_model(threads: Threads, frame: Frame, task: Task) -> str:
    """The SHA-256 of the model in a frame, of which nothing is kept. Raises what `keep_incoming` raises."""
    made = hashlib.sha256()
    async for block in gathered(_blocks(frame, task)):
        await threads.run(made.update, block)
    return made.hexdigest()


async def keep_incoming(server: ServerContext, frame: Frame, task: Task) -> str:
    """Make the model in a frame durable; its SHA-256. A refusal leaves nothing behind.

    Raises `malformed`, `bad-tensors`, `digest-mismatch`, `wrong-size`, `trailing-bytes`, `disk-full`, or `overloaded`
    because the disk is full.
    """
    await server.admission.check_disk(model_file(task).size)
    made = hashlib.sha256()
    writer = await server.threads.run(server.blobs.writer)

    def write(block: bytes) -> None:
        writer.write(block)
        made.update(block)

    try:
        async for block in gathered(_blocks(frame, task)):
            await server.threads.run(write, block)
        await server.threads.run(_finish, task, writer, made.hexdigest())
    finally:
        await server.threads.run(writer.close)
    return made.hexdigest()


def _finish(task: Task, writer: BlobWriter, sha256: str) -> None:
    check_model(task, sha256)
    check_finite(writer.reread(len(model_file(task).header)))
    writer.commit(model_blob(task.id, sha256))


async def _blocks(frame: Frame, task: Task) -> AsyncIterator[bytes]:
    prefix = await frame.exactly(8)
    text = await frame.exactly(header_size(prefix, MODEL_HEADER_BYTES))
    check_header(prefix + text, task)
    yield prefix + text
    async for block in frame.blocks(4 * task.parameters):
        yield block
