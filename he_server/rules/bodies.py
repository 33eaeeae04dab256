"""How large the body of a request may be, and how it may be encoded: known before any of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from he_protocol import frames
from he_protocol.errors import ProblemError
from he_protocol.problems import TOO_LARGE, UNKNOWN_CODING
from he_protocol.task import Task

FRAME_HEAD_BYTES = frames.PREFIX_BYTES + frames.HEAD_LIMIT


@dataclass(frozen=True)
class Sender:
    """Whose a body is, by its public key, and how many bytes the route can take of it."""

    party: bytes
    most: int


def check_codings(content: Sequence[str], transfer: Sequence[str]) -> None:
    """Raises `unknown-coding` for every `Content-Encoding` but identity and every `Transfer-Encoding` but chunked.

    Nothing here is worth compressing, and a few kilobytes can stand for gigabytes.
    """
    for values, taken in ((content, "identity"), (transfer, "chunked")):
        for value in values:
            if value.strip().lower() != taken:
                raise ProblemError(UNKNOWN_CODING, "the coding of the body", expected=taken, got=value[:80])


def check_declared(declared: int | None, most: int) -> int:
    """What a body counts for: its declared length, or all that its route can take. Raises `too-large`."""
    if declared is not None and declared > most:
        raise ProblemError(TOO_LARGE, "the body", expected=f"at most {most} bytes", got=declared)
    return most if declared is None else declared


def update_frame(task: Task) -> int:
    """The longest frame of an update."""
    return FRAME_HEAD_BYTES + sum(section.size for section in task.body)


def share_frame(task: Task, known_subshares: int) -> int:
    """The longest frame of a key holder's share: a vector for each subshare that it knows, of every bucket."""
    return FRAME_HEAD_BYTES + known_subshares * task.config.rounds.buckets * task.scheme.share_layout(task.length).size
