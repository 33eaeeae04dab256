"""Task configurations, as the authority completes and checks them before it signs. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from he_protocol import envelope
from he_protocol.config import HolderEntry, ModelSpec, ServerEntry, TaskConfig, check_fewest, check_numbers
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, public_from_jwk, verify
from he_protocol.messages import Credential
from he_protocol.privacy.plan import check_budget
from he_protocol.problems import BAD_COMMITTEE, BAD_PLAN, WRONG_ROLE
from he_protocol.task import Task


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
    check_numbers(config)  # before a scale is looked for: with an infinite number there is none
    config = _encrypted(config, fingerprint=config.encryption.load().profile.fingerprint)
    if "scale" not in encryption:
        config = _encrypted(config, scale=config.sum_plan.largest_scale())
    config.check()
    return config


def check_said(plan: Mapping[str, Any], config: TaskConfig) -> None:
    """Refuse a plan file whose weights cannot be meant: a cap that is left out, or that makes all weights equal.

    Raises `bad-plan`.
    """
    weighting = config.aggregation.load_weighting()
    if weighting.uses_cap and "weight_cap" not in _table(plan, "aggregation"):
        raise ProblemError(
            BAD_PLAN,
            f"aggregation.weighting {config.aggregation.weighting!r} needs aggregation.weight_cap: the most examples"
            " that one client counts for, or with 'fixed' the records that are expected in a round",
            expected="a number",
            got=f"none, which would be {config.aggregation.weight_cap:g}",
        )
    if weighting.appended and weighting.fraction(1.0) == weighting.fraction(2.0):
        raise ProblemError(
            BAD_PLAN,
            "aggregation.weight_cap: two examples would count no more than one, so all clients the same",
            expected="the most examples that one client counts for, above 1",
            got=config.aggregation.weight_cap,
        )


def sign_task(authority: SigningKey, config: TaskConfig) -> str:
    """The signed task, read again as every other party reads it: what one of them would refuse is not signed.

    Raises what `Task.from_token` raises, `bad-plan` for sums of single updates, and `budget-exhausted`.
    """
    check_fewest(config.rounds.min_clients)
    check_budget(config.privacy, config.rounds.max_openings)
    token = authority.sign(config)
    Task.from_token(token, authority.public)
    return token


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
