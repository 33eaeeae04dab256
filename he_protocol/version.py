"""The protocol's version: one number, in every signed object and in every frame (ADR 26)."""

from __future__ import annotations

from he_protocol.errors import ProblemError
from he_protocol.problems import UNKNOWN_PROTOCOL

PROTOCOL = 2


def unknown(what: str, got: object) -> ProblemError:
    """The refusal of anything that another protocol version made: none of it is read."""
    return ProblemError(
        UNKNOWN_PROTOCOL, f"{what} is of a version that this program does not speak", expected=PROTOCOL, got=got
    )
