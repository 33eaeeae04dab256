"""Request proofs seen before: each is good for one request (RFC 9449 section 11.1)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from he_protocol.messages import RequestProof
from he_protocol.problems import REPLAYED_REQUEST, Refusal

CAPACITY = 200_000
"""Proofs remembered: one minute at some 3,000 requests per second."""


class ReplayCache:
    """Bounded memory of proofs within their lifetime. The oldest go first when it is full."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def use(self, public: bytes, proof: RequestProof, now: float) -> None:
        """Raises `replayed-request` when this proof was used before."""
        name = hashlib.sha256(public + proof.jti.encode()).digest()
        if name in self._seen:
            raise Refusal(REPLAYED_REQUEST, "make a new proof, with a new jti, for every request", got=proof.jti[:64])
        while self._seen and (len(self._seen) >= self._capacity or next(iter(self._seen.values())) <= now):
            self._seen.popitem(last=False)
        self._seen[name] = proof.exp
