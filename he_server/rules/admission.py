"""Admission of uploads: how many bytes may be under way, or wait to be folded."""

from __future__ import annotations

from dataclasses import dataclass

from he_protocol.errors import ProblemError
from he_protocol.problems import OVERLOADED

SHARED_BLOB_BYTES = 1 << 20
"""Bodies up to this size are held in memory until they are durable with others."""

FEW = 16
"""Large updates that may be under way or wait to be folded, even where `ingest_bytes` would allow more."""


@dataclass(frozen=True)
class Limits:
    """Limits of admission: bytes that wait to be folded, bytes that stay free on disk, concurrent uploads in all and of
    one party, and seconds that an upload waits."""

    ingest_bytes: int
    min_free_bytes: int
    max_uploads: int
    max_uploads_of_party: int
    max_wait: float


@dataclass(frozen=True)
class Measured:
    """What the database and the disk say: bytes of durable updates that are not folded yet, and bytes free."""

    unfolded: int
    free: int


@dataclass(frozen=True)
class Load:
    """How busy the server is; sizes in bytes. `arriving` counts the whole of every upload that has begun."""

    uploads: int
    arriving: int
    unfolded: int
    free: int


def backlog_limit(size: int, ingest_bytes: int) -> int:
    """Bytes that may be under way or wait to be folded when an upload of `size` bytes joins them.

    Small updates are stored and folded in batches, so many may wait; of large ones a few keep the workers busy.
    """
    return ingest_bytes if size <= SHARED_BLOB_BYTES else min(ingest_bytes, FEW * size)


def check_load(load: Load, size: int, limits: Limits) -> None:
    """Raises `overloaded` when one more upload, of `size` bytes, is too many: at once, waiting, or on the disk.

    An upload that finds an empty backlog always fits there: a model may be larger than `ingest_bytes`.
    """
    if load.uploads >= limits.max_uploads:
        raise ProblemError(OVERLOADED, "too many uploads at once", expected=f"fewer than {limits.max_uploads}")
    backlog, most = load.arriving + load.unfolded, backlog_limit(size, limits.ingest_bytes)
    if backlog and backlog + size > most:
        detail = "earlier updates are not folded yet"
        raise ProblemError(OVERLOADED, detail, expected=f"at most {most} bytes", got=backlog + size)
    if load.free - load.arriving - size < limits.min_free_bytes:
        raise ProblemError(
            OVERLOADED, "the disk is nearly full", expected=f"{limits.min_free_bytes} bytes left", got=load.free
        )


def too_slow(got: int, seconds: float, min_rate: float, *, held_up: bool) -> bool:
    """Whether `got` bytes in `seconds` are fewer than `min_rate` (bytes per second) asks for.

    Never when it was `held_up`: the server itself paused reading.
    """
    return not held_up and got < min_rate * seconds
