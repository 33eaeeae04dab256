"""The authority enrolls parties: what it certifies, and for whom. Pure functions."""

from __future__ import annotations

from he_party.names import check_display
from he_protocol import envelope
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, fingerprint, jwk_x, public_from_jwk, read_unverified, verify
from he_protocol.messages import Cnf, Credential, EnrollRequest, Jwk, Role
from he_protocol.problems import MALFORMED, NOT_ADDRESSED, WRONG_ROLE

SECONDS_PER_DAY = 86400


def issue_credential(authority: SigningKey, request: str, role: Role, *, now: float, days: float) -> str:
    """A credential for the party that made an enrollment request.

    The request is signed with the key that it asks to certify (proof of possession). The role is the
    authority's decision; a request for another one is refused as `wrong-role`. A holder's HPKE key is one that can be
    sealed to, and signs the request too: `malformed` and `bad-signature`. So is a display name that hides something.
    """
    asked = verify(request, EnrollRequest, read_unverified(request, EnrollRequest).key)
    if asked.role != role:
        raise ProblemError(WRONG_ROLE, f"{asked.name!r} asks for another role", expected=role, got=asked.role)
    check_hpke(asked)
    check_display(asked.display)
    return authority.sign(
        Credential(
            iss=fingerprint(authority.public),
            sub=asked.name,
            role=role,
            iat=int(now),
            exp=int(now + days * SECONDS_PER_DAY),
            cnf=Cnf(Jwk(jwk_x(asked.key))),
            hpke=asked.hpke,
            display=asked.display,
        )
    )


def check_hpke(asked: EnrollRequest) -> None:
    """The HPKE key of a request is a key, of a key holder, and the requester's own.

    Raises `malformed` or `bad-signature`.
    """
    if not asked.hpke:
        return
    if asked.role != "holder":
        raise ProblemError(
            MALFORMED, f"{asked.name!r} needs no HPKE key", expected="none for this role", got=asked.role
        )
    envelope.check_key(asked.hpke)
    message = envelope.possession_message(asked.name, asked.key, asked.hpke)
    envelope.check_possession(asked.possession, asked.hpke, message)


def check_renewal(request: str, credential: str, authority: bytes) -> None:
    """The party that asks is the one that the authority certified before: same name, role and signing key.

    Raises `not-addressed`; `bad-signature` when the credential, which may have expired, is not this authority's.
    """
    asked = read_unverified(request, EnrollRequest)
    before = verify(credential, Credential, authority)
    if (asked.name, asked.role, asked.key) != (before.sub, before.role, public_from_jwk(before.cnf.jwk.x)):
        raise ProblemError(NOT_ADDRESSED, "the request is of another party", expected=before.sub, got=asked.name)
