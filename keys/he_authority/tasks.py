"""Task configurations, as the authority completes and checks them before it signs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from he_protocol import envelope
from he_protocol.config import HolderEntry, ModelSpec, ServerEntry, TaskConfig
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import public_from_jwk, verify
from he_protocol.messages import Credential
from he_protocol.problems import BAD_COMMITTEE, BAD_PLAN, WRONG_ROLE


def build_config(
    plan: Mapping[str, Any], model: ModelSpec, server: str, holders: Sequence[str], authority: bytes
) -> TaskConfig:
    """A checked task configuration from a plan file, the model and the parties' credentials.

    plan: `TaskConfig` less the server, the model, the profile's fingerprint and the holders. `encryption.scale` may be
    left out and is then the largest power of two that cannot wrap. Raises what `TaskConfig.check` raises.
    """
    encryption = _table(plan, "encryption")
    complete = {
        **plan,
        "server": _server(server, authority),
        "model": model,
        "encryption": {"scale": 1.0, **encryption, "fingerprint": bytes(32)},
        "committee": {**_table(plan, "committee"), "holders": tuple(_holder(token, authority) for token in holders)},
    }
    try:
        config = msgspec.convert(complete, TaskConfig)
    except msgspec.ValidationError as error:
        raise ProblemError(BAD_PLAN, str(error)) from None
    config = _encrypted(config, fingerprint=config.encryption.load().profile.fingerprint)
    if "scale" not in encryption:
        config = _encrypted(config, scale=config.sum_plan.largest_scale())
    config.check()
    return config


def next_epoch(last: TaskConfig, holders: Sequence[str], authority: bytes, initial_model: bytes) -> TaskConfig:
    """The task's next epoch with the committee of these credentials, from this model on; everything else stays.

    Raises what `TaskConfig.check` raises, and `bad-committee` when an HPKE key of the last epoch is listed again: it
    could not be destroyed.
    """
    committee = tuple(_holder(token, authority) for token in holders)
    for holder in committee:
        if any(envelope.share_a_half(holder.hpke, before.hpke) for before in last.committee.holders):
            raise ProblemError(
                BAD_COMMITTEE, f"{holder.name!r} lists its key of the last epoch; 'he-holder rotate' makes one"
            )
    config = replace(
        last,
        epoch=last.epoch + 1,
        model=replace(last.model, initial_model=initial_model),
        committee=replace(last.committee, holders=committee),
    )
    config.check()
    return config


def _table(plan: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One table of a plan; empty where there is none."""
    table = plan.get(name, {})
    if not isinstance(table, Mapping):
        raise ProblemError(BAD_PLAN, name, expected="a table", got=type(table).__name__)
    return table


def _encrypted(config: TaskConfig, **changes: bytes | float) -> TaskConfig:
    return replace(config, encryption=replace(config.encryption, **changes))


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
