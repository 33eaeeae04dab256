"""Posts of a key ceremony: each is one holder's, of one phase, and never replaced."""

from __future__ import annotations

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party, check_signed
from he_protocol.messages import Post
from he_protocol.problems import NOT_FOUND
from he_protocol.task import Task

POST_LIMIT = 64 * 1024 * 1024
"""Bytes of one post's body: the public-key shares of the largest committee fit."""


def check_phase(task: Task, phase: str) -> type[Post]:
    """What holders post in a phase of the task's ceremony. Raises `not-found`."""
    messages = {known.name: known.message for known in task.scheme.ceremony}
    if not messages:
        raise ProblemError(NOT_FOUND, f"scheme {task.config.encryption.scheme} has no key ceremony")
    if phase not in messages:
        raise ProblemError(NOT_FOUND, "no such phase", expected=", ".join(messages), got=phase[:80])
    return messages[phase]


def read_post(task: Task, phase: str, token: str, party: Party) -> Post:
    """A phase's message, signed by the holder that posts it.

    Raises `not-found`, `bad-signature` or `not-addressed`.
    """
    return check_signed(token, check_phase(task, phase), party, "holder")
