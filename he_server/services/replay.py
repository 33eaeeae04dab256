"""Request proofs seen before: each is good for one request (RFC 9449 section 11.1)."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict

from he_protocol.errors import ProblemError
from he_protocol.messages import RequestProof
from he_protocol.problems import OVERLOADED, REPLAYED_REQUEST

CAPACITY = 200_000
"""Proofs remembered: one minute at some 3,000 requests per second."""
SHARE = 20_000
"""Those of one party: some 300 requests per second."""


class ReplayCache:
    """Bounded memory of proofs within their lifetime. Where it is full a request is refused: to forget a proof
    instead would let it be used again, and one party could make the server forget everybody's."""

    def __init__(self, capacity: int = CAPACITY, share: int = SHARE) -> None:
        self._capacity = capacity
        self._share = share
        self._seen: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._parties: Counter[bytes] = Counter()

    def use(self, public: bytes, proof: RequestProof, now: float) -> None:
        """Raises `replayed-request` when this proof was used before, `overloaded` when there are too many."""
        name = hashlib.sha256(public + proof.jti.encode()).digest()
        if name in self._seen:
            raise ProblemError(
                REPLAYED_REQUEST, "make a new proof, with a new jti, for every request", got=proof.jti[:64]
            )
        self._forget(now)
        check_share(len(self._seen), self._capacity, self._parties[public], self._share)
        self._seen[name] = proof.exp, public
        self._parties[public] += 1

    def _forget(self, now: float) -> None:
        while self._seen and next(iter(self._seen.values()))[0] <= now:
            _, (_, public) = self._seen.popitem(last=False)
            self._parties[public] -= 1
            if not self._parties[public]:
                del self._parties[public]


def check_share(proofs: int, capacity: int, of_party: int, share: int) -> None:
    """Raises `overloaded` when one more proof is too many: in all, or of its party."""
    if of_party >= share:
        raise ProblemError(OVERLOADED, "this party sends too many requests", expected=f"at most {share} in a minute")
    if proofs >= capacity:
        raise ProblemError(OVERLOADED, "too many requests", expected=f"at most {capacity} in a minute")
