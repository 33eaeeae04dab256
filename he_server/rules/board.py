"""Posts of a key ceremony: each is one holder's, of one phase, and never replaced."""

from __future__ import annotations

from typing import Protocol

from he_protocol.documents import Phase
from he_protocol.identity.credentials import Party, check_signed
from he_protocol.messages import Commitment, Confirmation, Contribution, Reveal

POST_LIMIT = 64 * 1024 * 1024
"""Bytes of one post's body: the public-key shares of the largest committee fit."""


class Bound(Protocol):
    """What the messages of all phases have."""

    @property
    def task_hash(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...


def read_post(phase: Phase, token: str, party: Party) -> Bound:
    """A phase's message, signed by the holder that posts it. Raises `bad-signature` or `not-addressed`."""
    match phase:
        case "contribution":
            return check_signed(token, Contribution, party, "holder")
        case "commitment":
            return check_signed(token, Commitment, party, "holder")
        case "reveal":
            return check_signed(token, Reveal, party, "holder")
        case "confirmation":
            return check_signed(token, Confirmation, party, "holder")
