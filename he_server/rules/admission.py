"""How much may be under way, or wait to be folded, before an upload has to wait itself."""

from __future__ import annotations

from dataclasses import dataclass

from he_protocol.errors import ProblemError
from he_protocol.problems import OVERLOADED

SHARED_BLOB_BYTES = 1 << 20
"""Bodies up to this size are held in memory until they are durable with others."""

FEW = 16
"""Large updates that may be under way or wait to be folded, where `ingest_bytes` has room for more."""


@dataclass(frozen=True)
class Limits:
    """What an upload may not exceed: bytes waiting to be folded, bytes that stay free on disk, uploads at once, those
    of one party, and seconds that it waits for them."""

    ingest_bytes: int
    min_free_bytes: int
    max_uploads: int
    max_uploads_of_party: int
    max_wait: float


@dataclass(frozen=True)
class Measured:
    """What has to be asked for: bytes of durable updates that are not folded yet, and bytes free on disk."""

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

    Small ones are kept and folded together, and need many; of large ones a few keep everybody at work.
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

    Not the sender's fault when it was `held_up`: the server itself did not read on.
    """
    return not held_up and got < min_rate * seconds
