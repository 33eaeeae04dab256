"""JSON messages and the documents of the API; a TaskConfig that decodes is also checked."""

from __future__ import annotations

from contextlib import suppress

from he_protocol import documents
from he_protocol.config import TaskConfig
from he_protocol.errors import ProblemError
from he_protocol.messages import from_json, to_json
from tests.fuzz.vectors import KINDS, MESSAGES

_READ = [
    *KINDS.values(),
    *(kind for kind in vars(documents).values() if isinstance(kind, type) and issubclass(kind, documents.Document)),
]
SEEDS = [bytes([_READ.index(KINDS[v["type"]])]) + v["payload"].encode() for v in MESSAGES]


def run(data: bytes) -> None:
    """The first byte picks the kind."""
    if not data:
        return
    kind = _READ[data[0] % len(_READ)]
    with suppress(ProblemError):
        message = from_json(data[1:], kind)
        assert from_json(to_json(message), kind) == message
        if isinstance(message, TaskConfig):
            message.check()
    ProblemError.from_document(data[1:], 400).document()
