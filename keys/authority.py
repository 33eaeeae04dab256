"""The authority: an offline key that enrols parties and signs task configurations. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from he_protocol.messages import Cnf, Credential, EnrolRequest, Jwk, Role
from he_protocol.problems import BAD_COMMITTEE, BAD_PLAN, WRONG_ROLE, Refusal
from he_protocol.schemes import load_scheme
from he_protocol.signing import SigningKey, fingerprint, jwk_x, public_from_jwk, read_unverified, verify
from he_protocol.task import HolderEntry, ServerEntry, TaskConfig, TensorSpec, check_config, sum_plan

SECONDS_PER_DAY = 86400


def enrol(authority: SigningKey, request: str, role: Role, *, now: float, days: float) -> str:
    """A credential for the party that made an enrolment request.

    The request is signed with the key that it asks to certify (proof of possession). The role is the
    authority's decision; a request for another one is refused as `wrong-role`.
    """
    asked = verify(request, EnrolRequest, read_unverified(request, EnrolRequest).key)
    if asked.role != role:
        raise Refusal(WRONG_ROLE, f"{asked.name!r} asks for another role", expected=role, got=asked.role)
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


def build_config(
    plan: Mapping[str, Any],
    tensors: Sequence[TensorSpec],
    server: str,
    holders: Sequence[str],
    authority: bytes,
) -> TaskConfig:
    """A checked task configuration from a plan file and the parties' credentials.

    plan: the fields of `TaskConfig` less fingerprint, tensors, server and holders; `scale` may be left
    out and is then the largest power of two that cannot wrap. Raises what `check_config` raises.
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
