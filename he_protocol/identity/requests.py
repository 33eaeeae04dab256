"""Short-lived proofs of the sender of an HTTP request.

Pure functions: the clock and the keys are arguments.
"""

from __future__ import annotations

import hashlib
import hmac

from joserfc.util import urlsafe_b64encode

from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS, Party, check_credential
from he_protocol.identity.jws import SigningKey, verify
from he_protocol.messages import RequestProof
from he_protocol.problems import BAD_SIGNATURE, UNAUTHENTICATED

PROOF_SECONDS = 60
"""Lifetime of a request proof."""


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
    """The sender of a request. The caller still has to refuse a `jti` seen before.

    `path` is the request's target as it came, undecoded and with its query: there is one way to write what was signed.
    Raises what `check_credential` raises, and `unauthenticated` or `bad-signature`.
    """
    scheme, _, credential = authorization.partition(" ")
    if scheme != "DPoP" or not credential or not proof:
        raise ProblemError(UNAUTHENTICATED, "needs the headers 'Authorization: DPoP <credential>' and 'DPoP: <proof>'")
    party = check_credential(credential, authority, None, now)
    claims = verify(proof, RequestProof, party.public)
    wanted = (audience, method, path)
    if (claims.aud, claims.htm, claims.htu) != wanted:
        raise ProblemError(
            UNAUTHENTICATED,
            "the proof is for another request",
            expected=" ".join(wanted),
            got=f"{claims.aud} {claims.htm} {claims.htu}",
        )
    if not hmac.compare_digest(claims.ath, _credential_hash(credential)):
        raise ProblemError(BAD_SIGNATURE, "the proof was made for another credential")
    if claims.exp - claims.iat > PROOF_SECONDS or not claims.iat - CLOCK_SKEW_SECONDS <= now < claims.exp:
        raise ProblemError(
            UNAUTHENTICATED, "the proof is not fresh; check the clock", expected=f"about {int(now)}", got=claims.iat
        )
    return party, claims


def _credential_hash(credential: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(credential.encode()).digest()).decode()
