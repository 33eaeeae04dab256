"""The authority: an offline key that enrols parties and signs task configurations. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from he_protocol import envelope
from he_protocol.messages import REVOKED_LIMIT, Cnf, Credential, EnrolRequest, Jwk, RevocationList, Role
from he_protocol.problems import BAD_COMMITTEE, BAD_PLAN, MALFORMED, NOT_ADDRESSED, TOO_LARGE, WRONG_ROLE, Refusal
from he_protocol.revocation import Revocations, key_digest
from he_protocol.schemes import load_scheme
from he_protocol.signing import SigningKey, fingerprint, jwk_x, public_from_jwk, read_unverified, verify
from he_protocol.task import HolderEntry, ServerEntry, TaskConfig, TensorSpec, check_config, sum_plan

SECONDS_PER_DAY = 86400


def enrol(authority: SigningKey, request: str, role: Role, *, now: float, days: float) -> str:
    """A credential for the party that made an enrolment request.

    The request is signed with the key that it asks to certify (proof of possession). The role is the
    authority's decision; a request for another one is refused as `wrong-role`. A holder's HPKE key is one that can be
    sealed to, and signs the request too: `malformed` and `bad-signature`.
    """
    asked = verify(request, EnrolRequest, read_unverified(request, EnrolRequest).key)
    if asked.role != role:
        raise Refusal(WRONG_ROLE, f"{asked.name!r} asks for another role", expected=role, got=asked.role)
    check_hpke(asked)
    return authority.sign(
        Credential(
            iss=fingerprint(authority.public),
            sub=asked.name,
            role=role,
            iat=int(now),
            exp=int(now + days * SECONDS_PER_DAY),
            cnf=Cnf(Jwk(jwk_x(asked.key))),
            hpke=asked.hpke,
        )
    )


def check_hpke(asked: EnrolRequest) -> None:
    """The HPKE key of a request is a key, of a key holder, and the requester's own.

    Raises `malformed` or `bad-signature`.
    """
    if not asked.hpke:
        return
    if asked.role != "holder":
        raise Refusal(MALFORMED, f"{asked.name!r} needs no HPKE key", expected="none for this role", got=asked.role)
    envelope.check_key(asked.hpke)
    message = envelope.possession_message(asked.name, asked.key, asked.hpke)
    envelope.check_possession(asked.possession, asked.hpke, message)


def build_config(
    plan: Mapping[str, Any],
    tensors: Sequence[TensorSpec],
    server: str,
    holders: Sequence[str],
    authority: bytes,
) -> TaskConfig:
    """A checked task configuration from a plan file and the parties' credentials.

    plan: the fields of `TaskConfig` less fingerprint, tensors, server and holders. `initial_model` is what
    `he_protocol.tensors.model_digest` makes; `scale` may be left out and is then the largest power of two that cannot
    wrap. Raises what `check_config` raises.
    """
    try:
        profile = load_scheme(plan["scheme"], plan["profile"]).profile
        config = msgspec.convert(
            {
                "scale": 1.0,
                **plan,
                "fingerprint": profile.fingerprint,
                "tensors": tuple(tensors),
                "server": _server(server, authority),
                "holders": tuple(_holder(token, authority) for token in holders),
            },
            TaskConfig,
        )
    except KeyError as missing:
        raise Refusal(BAD_PLAN, f"the plan lacks {missing}") from None
    except msgspec.ValidationError as error:
        raise Refusal(BAD_PLAN, str(error)) from None
    if "scale" not in plan:
        config = msgspec.structs.replace(config, scale=sum_plan(config).largest_scale())
    check_config(config)
    return config


def check_renewal(request: str, credential: str, authority: bytes) -> None:
    """The party that asks is the one that the authority certified before: same name, role and signing key.

    Raises `not-addressed`; `bad-signature` when the credential, which may have expired, is not this authority's.
    """
    asked = read_unverified(request, EnrolRequest)
    before = verify(credential, Credential, authority)
    if (asked.name, asked.role, asked.key) != (before.sub, before.role, public_from_jwk(before.cnf.jwk.x)):
        raise Refusal(NOT_ADDRESSED, "the request is of another party", expected=before.sub, got=asked.name)


def next_epoch(last: TaskConfig, holders: Sequence[str], authority: bytes, initial_model: bytes) -> TaskConfig:
    """The task's next epoch with the committee of these credentials, from this model on; everything else stays.

    Raises what `check_config` raises, and `bad-committee` when an HPKE key of the last epoch is listed again: it could
    not be destroyed.
    """
    committee = tuple(_holder(token, authority) for token in holders)
    for holder in committee:
        if any(envelope.share_a_half(holder.hpke, before.hpke) for before in last.holders):
            raise Refusal(BAD_COMMITTEE, f"{holder.name!r} lists its key of the last epoch; 'he-keys rotate' makes one")
    config = msgspec.structs.replace(last, epoch=last.epoch + 1, holders=committee, initial_model=initial_model)
    check_config(config)
    return config


def revoke(authority: SigningKey, credentials: Sequence[str], previous: str | None, *, now: float, days: float) -> str:
    """The revocation list after `previous` (the first: None), with the keys of these credentials added.

    Without credentials it says that nothing has changed: the one before is good for so many days only. Raises
    `bad-signature` for what is not this authority's, and `too-large` for more than `REVOKED_LIMIT` keys.
    """
    last = Revocations() if previous is None else Revocations.read(previous, authority.public)
    keys = set(last.keys)
    for credential in credentials:
        claims = verify(credential, Credential, authority.public)
        keys.add(key_digest(public_from_jwk(claims.cnf.jwk.x)))
    if len(keys) > REVOKED_LIMIT:
        raise Refusal(TOO_LARGE, "the revocation list", expected=f"at most {REVOKED_LIMIT} keys", got=len(keys))
    valid_until = int(now + days * SECONDS_PER_DAY)
    return authority.sign(RevocationList(last.number + 1, int(now), valid_until, tuple(sorted(keys))))


def _server(credential: str, authority: bytes) -> ServerEntry:
    claims = verify(credential, Credential, authority)
    if claims.role != "server":
        raise Refusal(WRONG_ROLE, claims.sub, expected="server", got=claims.role)
    return ServerEntry(claims.sub, public_from_jwk(claims.cnf.jwk.x))


def _holder(credential: str, authority: bytes) -> HolderEntry:
    claims = verify(credential, Credential, authority)
    if claims.role != "holder":
        raise Refusal(WRONG_ROLE, claims.sub, expected="holder", got=claims.role)
    if not claims.hpke:
        raise Refusal(BAD_COMMITTEE, f"the credential of {claims.sub!r} has no HPKE key")
    return HolderEntry(claims.sub, public_from_jwk(claims.cnf.jwk.x), claims.hpke)
