"""Signing keys that no longer speak for anybody: the authority's lists, and what a party makes of them.

A list names keys, not credentials: a thief may hold several credentials of one key, while its owner enrolls
again, under the same name, with a new key. Pure functions: the clock is an argument.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import inf

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import public_from_jwk, read_unverified, verify
from he_protocol.messages import Credential, RevocationList
from he_protocol.problems import MALFORMED, OLD_REVOCATIONS, REVOKED_KEY


@dataclass(frozen=True)
class Revocations:
    """A verified list; without arguments, what a party knows that has never seen one.

    `keys`: SHA-256 of every revoked key. `valid_until` in Unix seconds. `token`: the list as it was signed.
    """

    number: int = 0
    valid_until: float = inf
    keys: frozenset[bytes] = frozenset()
    token: str = field(default="", repr=False)

    @classmethod
    def read(cls, token: str, authority: bytes) -> Revocations:
        """The list that the authority signed. Raises what `verify` raises, or `malformed` unless it is sorted."""
        found = verify(token, RevocationList, authority)
        if list(found.revoked) != sorted(set(found.revoked)):
            raise ProblemError(MALFORMED, "RevocationList: the revoked keys do not ascend")
        return cls(found.number, found.valid_until, frozenset(found.revoked), token)

    def covers(self, public: bytes) -> bool:
        """Whether this signing key is revoked."""
        return key_digest(public) in self.keys

    def covers_credential(self, token: str) -> bool:
        """Whether a credential's key is revoked; its signature is *not* checked."""
        return bool(self.keys) and self.covers(public_from_jwk(read_unverified(token, Credential).cnf.jwk.x))


def key_digest(public: bytes) -> bytes:
    """How a list names a signing key."""
    return hashlib.sha256(public).digest()


def check_key(known: Revocations, name: str, public: bytes) -> None:
    """Raises `revoked-key`."""
    if known.covers(public):
        raise ProblemError(REVOKED_KEY, f"{name!r} needs a new key and a new credential", got=f"list {known.number}")


def check_newer(known: Revocations, offered: Revocations) -> None:
    """Raises `old-revocations` unless the offered list comes after the known one, or is that one again."""
    if offered.number < known.number or (offered.number == known.number and offered.token != known.token):
        raise ProblemError(
            OLD_REVOCATIONS, "a newer list is known", expected=f"above {known.number}", got=offered.number
        )


def check_fresh(known: Revocations, now: float) -> None:
    """Raises `old-revocations` after the list's time: the next one may be held back."""
    if now >= known.valid_until:
        raise ProblemError(
            OLD_REVOCATIONS,
            f"list {known.number} has expired",
            expected=f"one valid at {int(now)}",
            got=known.valid_until,
        )
