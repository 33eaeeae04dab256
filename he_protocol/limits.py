"""How large an honest answer about a task can be, in bytes: by the signed task, not by what the server declares."""

from __future__ import annotations

from math import comb

from he_protocol.identity.jws import TOKEN_LIMIT
from he_protocol.task import Task

DOCUMENT = 1 << 20
"""Of an answer that does not grow with its task."""
TASK_LIST = 1 << 24
"""Of a server's list of tasks: it comes before any of them is verified."""
ROUND_LIST = 1 << 26
"""Of a list of rounds, whatever the task."""
_TEXT = 1 << 13
"""Of one failure: its texts are cut to `problems.TEXT_LIMIT` characters."""
_UPDATE_ID = 64
_SIGNED_UPDATE = 1 << 12
"""Of a header of a few sections, a credential, and both signatures."""
_MANIFEST_ENTRY = 1 << 9
_SEALED_BOX = 1 << 11
_SEED = 1 << 7
_DIGEST = 1 << 7


def revocations() -> int:
    """Of the newest revocation list."""
    return TOKEN_LIMIT + DOCUMENT


def round_status(task: Task) -> int:
    """Of one round: updates that are in no sum are listed, and what every key holder said."""
    config = task.config
    rounds, holders = config.rounds, len(config.committee.holders)
    return DOCUMENT + rounds.max_clients * (_UPDATE_ID + _TEXT) + (rounds.buckets + holders) * _TEXT


def opening(task: Task) -> int:
    """Of a manifest, the votes for it, and a revocation list."""
    entries = task.config.rounds.max_clients * _MANIFEST_ENTRY
    return revocations() + entries + len(task.config.committee.holders) * _SIGNED_UPDATE


def heads(task: Task) -> int:
    """Of all updates' signed heads."""
    return DOCUMENT + task.config.rounds.max_clients * _SIGNED_UPDATE


def board(task: Task) -> int:
    """Of one phase of the key ceremony: a post of every holder, with boxes of seeds for the others, or digests."""
    holders, others = len(task.config.committee.holders), task.config.committee.threshold - 1
    boxes = (holders - 1) * (_SEALED_BOX + comb(max(holders - 2, 0), others) * _SEED)
    return DOCUMENT + holders * (boxes + comb(holders - 1, others) * _DIGEST)
