"""Credentials issued by the authority, and messages signed under them.

Pure functions: the clock and the keys are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from he_protocol.errors import ProblemError
from he_protocol.identity.jws import fingerprint, public_from_jwk, read_unverified, verify
from he_protocol.messages import Credential, Message, Role
from he_protocol.problems import EXPIRED_CREDENTIAL, FOREIGN_CREDENTIAL, NOT_ADDRESSED, WRONG_ROLE

YEAR_9999 = 253_370_764_800
"""Unix seconds: later years have no four digits."""
CLOCK_SKEW_SECONDS = 30
"""How far apart two honest clocks may be."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Party:
    """A party whose credential was checked."""

    name: str
    role: Role
    public: bytes


def utc(seconds: float) -> str:
    """Unix seconds as people read them; as they are, where no calendar has them.

    >>> utc(1_700_000_000)
    '2023-11-14T22:13:20Z'
    """
    from numpy import datetime64  # only a refusal needs it, and a status

    return f"{datetime64(int(seconds), 's')}Z" if abs(seconds) < YEAR_9999 else str(seconds)


def valid_until(token: str) -> str:
    """When a credential of our own ends."""
    return utc(read_unverified(token, Credential).exp)


def check_credential(token: str, authority: bytes, role: Role | None, now: float) -> Party:
    """The party that a credential names, once issuer, signature, validity and role are checked.

    Raises `foreign-credential`, `bad-signature`, `expired-credential` or `wrong-role`.
    """
    credential = issued_by(authority, token)
    if not credential.iat - CLOCK_SKEW_SECONDS <= now < credential.exp:
        raise ProblemError(
            EXPIRED_CREDENTIAL,
            f"the credential of {credential.sub!r} is not valid now",
            expected=f"from {utc(credential.iat)} until {utc(credential.exp)}",
            got=utc(now),
        )
    if role is not None and credential.role != role:
        raise ProblemError(WRONG_ROLE, f"{credential.sub!r} may not do this", expected=role, got=credential.role)
    return Party(credential.sub, credential.role, public_from_jwk(credential.cnf.jwk.x))


@lru_cache(maxsize=4096)
def issued_by(authority: bytes, token: str) -> Credential:
    """A credential, once its issuer and signature are checked: they say the same every time, its validity does not.

    Raises `foreign-credential` or `bad-signature`.
    """
    claimed, issuer = read_unverified(token, Credential), fingerprint(authority)
    if claimed.iss != issuer:
        raise ProblemError(FOREIGN_CREDENTIAL, "another authority issued it", expected=issuer, got=claimed.iss)
    return verify(token, Credential, authority)


def check_signed(token: str, kind: type[M], party: Party, field: str) -> M:
    """A message signed by a party that must name that party in `field`."""
    message = verify(token, kind, party.public)
    if getattr(message, field) != party.name:
        raise ProblemError(
            NOT_ADDRESSED,
            f"the {kind.__name__} speaks for another party",
            expected=party.name,
            got=getattr(message, field),
        )
    return message
