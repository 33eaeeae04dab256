"""Revocation lists of a test's authority."""

from __future__ import annotations

from msgspec.structs import replace

from he_authority.revocations import revoke
from he_protocol.identity.jws import SigningKey, read_unverified
from he_protocol.identity.revocation import Revocations
from he_protocol.messages import RevocationList

DAY = 86400


def revoked(authority: SigningKey, *credentials: str, number: int = 1, now: float, seconds: int = DAY) -> Revocations:
    """A list, as the authority signs it, with the keys of these credentials."""
    made = read_unverified(revoke(authority, credentials, None, now=now, days=1), RevocationList)
    token = authority.sign(replace(made, number=number, valid_until=int(now) + seconds))
    return Revocations.read(token, authority.public)
