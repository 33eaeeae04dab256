"""The frame, and the head of an update inside it."""

from __future__ import annotations

from contextlib import suppress

from he_protocol import frames
from he_protocol.errors import ProblemError
from he_protocol.messages import SignedUpdate, from_json, to_json
from tests.fuzz.vectors import load

SEEDS = [bytes.fromhex(v["frame"]) for v in load("good_frames")]


def run(data: bytes) -> None:
    with suppress(ProblemError):
        head, body = frames.split(data)
        assert frames.start(head) + bytes(body) == data
        signed = from_json(head, SignedUpdate)
        assert from_json(to_json(signed), SignedUpdate) == signed
