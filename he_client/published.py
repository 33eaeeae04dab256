"""What a server publishes, streamed to files: models and opened sums, each as large as the signed task says."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_party.tensors import read_tensors
from he_party.transport import Transport
from he_protocol import headers, paths
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import verify
from he_protocol.messages import PublishedModel
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import BAD_SETTINGS, DIGEST_MISMATCH, UNEXPECTED_ANSWER, WRONG_TASK
from he_protocol.task import Task
from he_protocol.tensors import check_float32, check_shapes


@dataclass(frozen=True)
class Model:
    """A published model: float32 tensors by name."""

    version: int
    tensors: dict[str, npt.NDArray[np.float32]]


async def pull_model(transport: Transport, task: Task, folder: Path) -> Model:
    """The newest published model; not downloaded again when the one in `folder` has not changed.

    Version 0 is the model that the authority signed. Of later ones the server's word is all that there is, and it is
    signed: what stands between can pass on an older model of the task, and nothing else. This device keeps no memory of
    versions against that: a server that was restored from a backup rightly publishes an older one (docs/operations.md).
    Raises what `check_published` raises, `bad-tensors` for tensors of another model, and what `download` raises.
    """
    kept = folder / f"{task.id}.safetensors"
    known = await asyncio.to_thread(_digest, kept)
    fresh = kept.with_suffix(f".{secrets.token_hex(8)}")
    try:
        answer = await transport.download(
            paths.model_path(task.id),
            fresh,
            audience=task.config.server.name,
            limit=task.model_limit,
            headers={"If-None-Match": f'"{known.hex()}"'} if known else {},
        )
        unchanged = answer.status == 304
        version = check_published(task, answer.headers.get(headers.MODEL, ""), known if unchanged else answer.sha256)
        tensors = await asyncio.to_thread(_read, kept if unchanged else fresh)
        check_shapes({name: value.shape for name, value in tensors.items()}, task.config.model.shapes)
        check_float32(tensors)
        if not unchanged:
            await asyncio.to_thread(fresh.replace, kept)
    finally:
        fresh.unlink(missing_ok=True)
    return Model(version, tensors)


async def opened_sum(transport: Transport, task: Task, number: int, folder: Path) -> Integers:
    """The integer sum that the committee opened for a published round, shape (task.length,)."""
    file = folder / f"{task.id}.{secrets.token_hex(8)}.sum"
    try:
        await transport.download(
            paths.sum_path(task.id, number), file, audience=task.config.server.name, limit=task.sum_limit
        )
        total = (await asyncio.to_thread(_read, file)).get("sum")
    finally:
        file.unlink(missing_ok=True)
    if total is None or total.shape != (task.length,) or total.dtype != np.int64:
        raise ProblemError(UNEXPECTED_ANSWER, "the opened sum", expected=f"int64, shape ({task.length},)")
    return total


def check_published(task: Task, token: str, sha256: bytes) -> int:
    """The version of the model with this digest, by the `PublishedModel` that came with it.

    Raises `unexpected-answer` where none came, what `verify` raises, `wrong-task`, and `digest-mismatch` for other
    bytes than the server signed or, as version 0, than the authority signed.
    """
    if not token:
        raise ProblemError(UNEXPECTED_ANSWER, headers.MODEL, expected="what the server signed of the model", got="none")
    said = verify(token, PublishedModel, task.config.server.key)
    if said.task_hash != task.hash:
        raise ProblemError(WRONG_TASK, "the model", expected=task.id, got=said.task_hash.hex())
    if said.sha256 != sha256:
        raise ProblemError(DIGEST_MISMATCH, "the model", expected=said.sha256.hex(), got=sha256.hex())
    initial = task.config.model.initial_model
    if said.version == 0 and sha256 != initial:
        raise ProblemError(DIGEST_MISMATCH, "the initial model", expected=initial.hex(), got=sha256.hex())
    return said.version


def _digest(path: Path) -> bytes:
    """SHA-256 of a model that we have, nothing without one."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    return read_tensors(path, UNEXPECTED_ANSWER, "not safetensors")


def checked_version(version: object) -> int:
    """A model's version, of any integer type. Raises `bad-settings` before anything is encrypted for it."""
    try:
        found = -1 if isinstance(version, bool) else index(version)  # type: ignore[arg-type]
    except TypeError:
        found = -1
    if not 0 <= found < 1 << 63:
        got = f"{type(version).__name__} {version}"
        raise ProblemError(BAD_SETTINGS, "base_version", expected="the version of a pulled model", got=got)
    return found
