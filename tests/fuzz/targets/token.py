"""Compact JWS of every kind: only the signed bytes verify, whatever is done to a good token."""

from __future__ import annotations

from contextlib import suppress

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import public_from_jwk, read_unverified, verify
from he_protocol.messages import Credential
from tests.fuzz.vectors import KINDS, MESSAGES

SEEDS = [v["token"].encode() for v in MESSAGES]
_KNOWN = {v["token"]: verify(v["token"], KINDS[v["type"]], bytes.fromhex(v["public"])) for v in MESSAGES}
_KEYS = [(KINDS[v["type"]], bytes.fromhex(v["public"])) for v in MESSAGES]


def run(data: bytes) -> None:
    token = data.decode("utf-8", "surrogateescape")
    for kind, public in _KEYS:
        with suppress(ProblemError):
            message = verify(token, kind, public)
            assert _KNOWN.get(token) == message, "another spelling of a signed message verifies"
    with suppress(ProblemError):
        public_from_jwk(read_unverified(token, Credential).cnf.jwk.x)
