"""A bulletin board in memory."""

from __future__ import annotations

from collections import defaultdict

from he_protocol.errors import ProblemError
from he_protocol.problems import CEREMONY_CONFLICT, NOT_FOUND, TOO_LARGE


class MemoryBoard:
    """A `he_party.board.Board` that every party of a test shares."""

    def __init__(self) -> None:
        self._posts: defaultdict[str, dict[str, tuple[str, bytes]]] = defaultdict(dict)

    async def posts(self, phase: str) -> dict[str, str]:
        return {holder: message for holder, (message, _) in self._posts[phase].items()}

    async def body(self, phase: str, holder: str, limit: int) -> bytes:
        if holder not in self._posts[phase]:
            raise ProblemError(NOT_FOUND, f"{holder} has posted no {phase}")
        body = self._posts[phase][holder][1]
        if len(body) > limit:
            raise ProblemError(TOO_LARGE, f"the {phase} of {holder}", expected=f"at most {limit} bytes", got=len(body))
        return body

    async def post(self, phase: str, holder: str, message: str, body: bytes = b"") -> None:
        if self._posts[phase].setdefault(holder, (message, body))[0] != message:
            raise ProblemError(CEREMONY_CONFLICT, f"{holder} has posted another {phase}")
