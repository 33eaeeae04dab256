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
from he_protocol import paths
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import BAD_SETTINGS, DIGEST_MISMATCH, UNEXPECTED_ANSWER
from he_protocol.task import Task
from he_protocol.tensors import check_float32, check_shapes

VERSION_HEADER = "HushSum-Model-Version"
VERSION_DIGITS = 15


@dataclass(frozen=True)
class Model:
    """A published model: float32 tensors by name."""

    version: int
    tensors: dict[str, npt.NDArray[np.float32]]


async def pull_model(transport: Transport, task: Task, folder: Path) -> Model:
    """The newest published model; not downloaded again when the one in `folder` has not changed.

    Version 0 is the model that the authority signed. Of later ones the server's word is all that there is.
    """
    kept = folder / f"{task.id}.safetensors"
    known = await asyncio.to_thread(_file_etag, kept)
    fresh = kept.with_suffix(f".{secrets.token_hex(8)}")
    try:
        answer = await transport.download(
            paths.model_path(task.id),
            fresh,
            audience=task.config.server.name,
            limit=task.model_limit,
            headers={"If-None-Match": known} if known else {},
        )
        etag = known if answer.status == 304 else f'"{answer.sha256.hex()}"'
        if answer.headers.get("ETag") != etag:
            raise ProblemError(
                DIGEST_MISMATCH, "the model's ETag", expected=etag, got=answer.headers.get("ETag", "none")
            )
        version = answer.headers.get(VERSION_HEADER, "")
        check_version(task, version, etag)
        tensors = await asyncio.to_thread(_read, kept if answer.status == 304 else fresh)
        check_shapes({name: value.shape for name, value in tensors.items()}, task.config.model.shapes)
        check_float32(tensors)
        if answer.status != 304:
            await asyncio.to_thread(fresh.replace, kept)
    finally:
        fresh.unlink(missing_ok=True)
    return Model(int(version), tensors)


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


def check_version(task: Task, version: str, etag: str) -> None:
    """A published model's number is one, and version 0 is what the authority signed.

    Raises `unexpected-answer` or `digest-mismatch`.
    """
    if not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS):
        raise ProblemError(UNEXPECTED_ANSWER, VERSION_HEADER, expected="a number", got=version[:80])
    signed = f'"{task.config.model.initial_model.hex()}"'
    if int(version) == 0 and etag != signed:
        raise ProblemError(DIGEST_MISMATCH, "the initial model", expected=signed, got=etag)


def _file_etag(path: Path) -> str:
    """The ETag of a model that we have, "" without one."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return f'"{hashlib.file_digest(file, "sha256").hexdigest()}"'


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
