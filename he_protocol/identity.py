"""Who speaks: credentials issued by the authority, and short-lived proofs for HTTP requests.

Pure functions: the clock and the keys are arguments.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from joserfc.util import urlsafe_b64encode

from he_protocol.messages import Credential, Message, RequestProof, Role
from he_protocol.problems import (
    BAD_SIGNATURE,
    EXPIRED_CREDENTIAL,
    FOREIGN_CREDENTIAL,
    NOT_ADDRESSED,
    UNAUTHENTICATED,
    WRONG_ROLE,
    Refusal,
)
from he_protocol.signing import SigningKey, fingerprint, public_from_jwk, read_unverified, verify

PROOF_SECONDS = 60
"""Lifetime of a request proof."""
CLOCK_SKEW_SECONDS = 30
"""How far apart two honest clocks may be."""

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Party:
    """Somebody whose credential was checked."""

    name: str
    role: Role
    public: bytes


def check_credential(token: str, authority: bytes, role: Role | None, now: float) -> Party:
    """Who a credential speaks for, once issuer, signature, validity and role are checked.

    Raises `foreign-credential`, `bad-signature`, `expired-credential` or `wrong-role`.
    """
    credential = issued_by(authority, token)
    if not credential.iat - CLOCK_SKEW_SECONDS <= now < credential.exp:
        raise Refusal(
            EXPIRED_CREDENTIAL,
            f"the credential of {credential.sub!r} is not valid now",
            expected=f"{credential.iat} <= now < {credential.exp}",
            got=int(now),
        )
    if role is not None and credential.role != role:
        raise Refusal(WRONG_ROLE, f"{credential.sub!r} may not do this", expected=role, got=credential.role)
    return Party(credential.sub, credential.role, public_from_jwk(credential.cnf.jwk.x))


@lru_cache(maxsize=4096)
def issued_by(authority: bytes, token: str) -> Credential:
    """A credential, once its issuer and signature are checked: they say the same every time, its validity does not.

    Raises `foreign-credential` or `bad-signature`.
    """
    claimed, issuer = read_unverified(token, Credential), fingerprint(authority)
    if claimed.iss != issuer:
        raise Refusal(FOREIGN_CREDENTIAL, "another authority issued it", expected=issuer, got=claimed.iss)
    return verify(token, Credential, authority)


def check_signed(token: str, kind: type[M], party: Party, field: str) -> M:
    """A message signed by a party that must name that party in `field`."""
    message = verify(token, kind, party.public)
    if getattr(message, field) != party.name:
        raise Refusal(
            NOT_ADDRESSED,
            f"the {kind.__name__} speaks for somebody else",
            expected=party.name,
            got=getattr(message, field),
        )
    return message


def prove_request(
    key: SigningKey, credential: str, *, audience: str, method: str, path: str, now: float, jti: str
) -> dict[str, str]:
    """The HTTP headers that authenticate one request. `path`: its target as it stands on the wire, with the query."""
    proof = RequestProof(
        aud=audience,
        htm=method,
        htu=path,
        iat=int(now),
        exp=int(now) + PROOF_SECONDS,
        jti=jti,
        ath=_credential_hash(credential),
    )
    return {"Authorization": f"DPoP {credential}", "DPoP": key.sign(proof)}


def check_request(
    authorization: str, proof: str, *, authority: bytes, audience: str, method: str, path: str, now: float
) -> tuple[Party, RequestProof]:
    """Who sent a request. The caller still has to refuse a `jti` seen before.

    `path` is the request's target as it came, undecoded and with its query: there is one way to write what was signed.
    Raises what `check_credential` raises, and `unauthenticated` or `bad-signature`.
    """
    scheme, _, credential = authorization.partition(" ")
    if scheme != "DPoP" or not credential or not proof:
        raise Refusal(UNAUTHENTICATED, "needs the headers 'Authorization: DPoP <credential>' and 'DPoP: <proof>'")
    party = check_credential(credential, authority, None, now)
    claims = verify(proof, RequestProof, party.public)
    wanted = (audience, method, path)
    if (claims.aud, claims.htm, claims.htu) != wanted:
        raise Refusal(
            UNAUTHENTICATED,
            "the proof is for another request",
            expected=" ".join(wanted),
            got=f"{claims.aud} {claims.htm} {claims.htu}",
        )
    if not hmac.compare_digest(claims.ath, _credential_hash(credential)):
        raise Refusal(BAD_SIGNATURE, "the proof was made for another credential")
    if claims.exp - claims.iat > PROOF_SECONDS or not claims.iat - CLOCK_SKEW_SECONDS <= now < claims.exp:
        raise Refusal(
            UNAUTHENTICATED, "the proof is not fresh; check the clock", expected=f"about {int(now)}", got=claims.iat
        )
    return party, claims


def _credential_hash(credential: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(credential.encode()).digest()).decode()
