"""Task configurations, as the authority completes and checks them before it signs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from he_protocol import envelope
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import public_from_jwk, verify
from he_protocol.messages import Credential
from he_protocol.problems import BAD_COMMITTEE, BAD_PLAN, WRONG_ROLE
from he_protocol.schemes.registry import load_scheme
from he_protocol.task import HolderEntry, ServerEntry, TaskConfig, TensorSpec, check_config, sum_plan


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
        raise ProblemError(BAD_PLAN, f"the plan lacks {missing}") from None
    except msgspec.ValidationError as error:
        raise ProblemError(BAD_PLAN, str(error)) from None
    if "scale" not in plan:
        config = msgspec.structs.replace(config, scale=sum_plan(config).largest_scale())
    check_config(config)
    return config


def next_epoch(last: TaskConfig, holders: Sequence[str], authority: bytes, initial_model: bytes) -> TaskConfig:
    """The task's next epoch with the committee of these credentials, from this model on; everything else stays.

    Raises what `check_config` raises, and `bad-committee` when an HPKE key of the last epoch is listed again: it could
    not be destroyed.
    """
    committee = tuple(_holder(token, authority) for token in holders)
    for holder in committee:
        if any(envelope.share_a_half(holder.hpke, before.hpke) for before in last.holders):
            raise ProblemError(
                BAD_COMMITTEE, f"{holder.name!r} lists its key of the last epoch; 'he-holder rotate' makes one"
            )
    config = msgspec.structs.replace(last, epoch=last.epoch + 1, holders=committee, initial_model=initial_model)
    check_config(config)
    return config


def _server(credential: str, authority: bytes) -> ServerEntry:
    claims = verify(credential, Credential, authority)
    if claims.role != "server":
        raise ProblemError(WRONG_ROLE, claims.sub, expected="server", got=claims.role)
    return ServerEntry(claims.sub, public_from_jwk(claims.cnf.jwk.x))


def _holder(credential: str, authority: bytes) -> HolderEntry:
    claims = verify(credential, Credential, authority)
    if claims.role != "holder":
        raise ProblemError(WRONG_ROLE, claims.sub, expected="holder", got=claims.role)
    if not claims.hpke:
        raise ProblemError(BAD_COMMITTEE, f"the credential of {claims.sub!r} has no HPKE key")
    return HolderEntry(claims.sub, public_from_jwk(claims.cnf.jwk.x), claims.hpke)
