"""The audit log's rules: every entry carries the hash of the one before, so that no past can be rewritten
under a head that another party has kept (as in RFC 9162, but for one log too short to need a tree)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from he_protocol.errors import ProblemError
from he_protocol.messages import AuditHead
from he_protocol.problems import AUDIT_BROKEN

Event = Literal["task-added", "board-post", "round-closed", "round-screened", "round-opening", "vote-cast",
                "round-refused", "share-accepted", "round-published", "round-failed", "keys-revoked",
                "numbers-recovered", "task-open", "task-paused", "task-closed"]  # fmt: skip
GENESIS = bytes(32)
"""The hash before the first entry."""


class Entry(msgspec.Struct, frozen=True):
    """One thing that happened. `detail` is a JSON object as text, `time` Unix seconds, `round` 0 where there is none.

    `seq` counts from 1. `hash` is SHA-256 over `previous` and the JSON of all fields but these two.
    """

    seq: int
    time: float
    event: Event
    task: str
    round: int
    detail: str
    previous: str = ""
    hash: str = ""


def chained(entry: Entry, previous: bytes) -> Entry:
    """The entry as it is written after the one whose hash is `previous`."""
    content = msgspec.json.encode(msgspec.structs.replace(entry, previous="", hash=""))
    digest = hashlib.sha256(previous + content).hexdigest()
    return msgspec.structs.replace(entry, previous=previous.hex(), hash=digest)


def verify_chain(entries: Iterable[Entry], pinned: AuditHead | None = None) -> tuple[int, bytes]:
    """Number and hash of the last entry of a whole log, oldest first, once every link holds.

    With `pinned`, a head kept from an earlier day, the log must still contain that entry: without one, a log
    that was cut short, or written anew from the start, looks whole. Raises `audit-broken`.
    """
    seq, previous = 0, GENESIS
    contains = pinned is None or (pinned.seq == 0 and pinned.hash == GENESIS)
    for entry in entries:
        if entry.seq != seq + 1:
            raise ProblemError(AUDIT_BROKEN, "an entry is missing or out of order", expected=seq + 1, got=entry.seq)
        expected = chained(entry, previous)
        if entry != expected:
            raise ProblemError(AUDIT_BROKEN, f"entry {entry.seq} was changed", expected=expected.hash, got=entry.hash)
        seq, previous = entry.seq, bytes.fromhex(entry.hash)
        contains = contains or (pinned is not None and (pinned.seq, pinned.hash) == (seq, previous))
    if pinned is not None and not contains:
        raise ProblemError(
            AUDIT_BROKEN, "the log does not contain the pinned head", expected=pinned.seq, got=f"{seq} entries"
        )
    return seq, previous
