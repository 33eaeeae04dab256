"""The authority's pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from he_authority.enrollment import issue_credential
from he_authority.tasks import build_config
from he_protocol.config import ModelSpec
from he_protocol.identity.credentials import check_credential
from he_protocol.identity.jws import SigningKey, verify
from he_protocol.messages import Credential, EnrollRequest, Role
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_PLAN,
    BAD_SIGNATURE,
    EXPIRED_CREDENTIAL,
    SUM_COULD_WRAP,
    WRONG_ROLE,
    WRONG_SCHEME,
    ProblemType,
)
from he_testing.clocks import FakeClock
from he_testing.parties import Authority
from he_testing.plans import tables
from he_testing.problems import expect_problem
from tests.support.kahe import INSECURE_TASK
from tests.support.parties import NOW, World
from tests.support.parties import PLAN as SHAPE

KEY = SigningKey.generate()
PLAN = SHAPE | {"agreement": 3}


def request(role: Role = "client", *, signer: SigningKey = KEY) -> str:
    return signer.sign(EnrollRequest("alice", role, KEY.public, int(NOW)))


@pytest.mark.parametrize("role", ["client", "holder", "server"])
def test_an_enrolled_party_is_who_it_says(role: Role) -> None:
    authority = Authority(clock=FakeClock())
    token = issue_credential(authority.key, request(role), role, now=NOW, days=2)
    party = check_credential(token, authority.key.public, role, NOW)
    assert (party.name, party.role, party.public) == ("alice", role, KEY.public)
    assert verify(token, Credential, authority.key.public).hpke == b""
    check_credential(token, authority.key.public, role, NOW + 2 * 86400 - 1)
    with expect_problem(EXPIRED_CREDENTIAL):
        check_credential(token, authority.key.public, role, NOW + 2 * 86400)


def test_nobody_is_enrolled_with_another_partys_key() -> None:
    """The request must be signed with the key that it asks to certify."""
    with expect_problem(BAD_SIGNATURE):
        issue_credential(Authority().key, request(signer=SigningKey.generate()), "client", now=NOW, days=1)


@pytest.mark.parametrize(("asked", "given"), [("client", "holder"), ("holder", "server"), ("server", "client")])
def test_the_role_is_what_was_asked_for(asked: Role, given: Role) -> None:
    with expect_problem(WRONG_ROLE):
        issue_credential(Authority().key, request(asked), given, now=NOW, days=1)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def build(world: World, plan: dict[str, Any], **changes: Any) -> Any:
    parts = {
        "model": ModelSpec(world.tensors, bytes(32)),
        "server": world.server.credential,
        "holders": [holder.credential for holder in world.committee],
        "authority": world.authority.key.public,
    }
    return build_config(tables(plan), **{**parts, **changes})


def test_a_plan_becomes_a_checked_configuration(world: World) -> None:
    config = build(world, PLAN)
    config.check()
    assert config.server.key == world.server.key.public
    assert [(h.name, h.key, h.hpke) for h in config.committee.holders] == [
        (party.name, party.key.public, key.public) for party, key in zip(world.committee, world.hpke, strict=True)
    ]
    assert config.encryption.fingerprint == config.encryption.load().profile.fingerprint


def test_a_scale_that_is_left_out_is_the_largest_that_cannot_wrap(world: World) -> None:
    config = build(world, {name: value for name, value in PLAN.items() if name != "scale"})
    assert config.encryption.scale == config.sum_plan.largest_scale() > 1024
    with expect_problem(SUM_COULD_WRAP):
        build(world, PLAN | {"scale": 2 * config.encryption.scale})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"scheme": "none"}, WRONG_SCHEME),
        ({"profile": "ckks-16"}, WRONG_SCHEME),
        (INSECURE_TASK, WRONG_SCHEME),
        ({"min_clients": 0}, BAD_PLAN),
        ({"min_clients": 9}, BAD_PLAN),
        ({"privacy": {"unit": "hope"}}, BAD_PLAN),
        ({"surprise": 1}, BAD_PLAN),
        ({"name": "Not A Name"}, BAD_PLAN),
        ({"threshold": 1}, BAD_COMMITTEE),
        ({"threshold": 4}, BAD_COMMITTEE),
        ({"agreement": 1}, BAD_COMMITTEE),
        ({"agreement": 2}, BAD_COMMITTEE),
        ({"agreement": 4}, BAD_COMMITTEE),
        ({"max_openings": 10**9}, BAD_PLAN),
        ({"scale": 2.0**60}, SUM_COULD_WRAP),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_plans_that_are_refused(world: World, change: dict[str, Any], problem: ProblemType) -> None:
    with expect_problem(problem):
        build(world, PLAN | change)


def test_a_committee_that_one_holder_breaks_must_be_asked_for(world: World) -> None:
    weak = PLAN | {"agreement": 2}
    with expect_problem(BAD_COMMITTEE, "allow_no_collusion"):
        build(world, weak)
    assert build(world, weak | {"allow_no_collusion": True}).committee.agreement == 2


@pytest.mark.parametrize("name", ["scheme", "profile", "min_clients", "threshold", "agreement", "privacy"])
def test_what_a_plan_lacks_is_named(world: World, name: str) -> None:
    with expect_problem(BAD_PLAN, name):
        build(world, {key: value for key, value in PLAN.items() if key != name})


def test_credentials_in_each_others_places(world: World) -> None:
    with expect_problem(WRONG_ROLE):
        build(world, PLAN, server=world.client("a").credential)
    with expect_problem(WRONG_ROLE):
        build(world, PLAN, holders=[world.server.credential] * 3)
    with expect_problem(BAD_SIGNATURE):
        build(world, PLAN, server=Authority(clock=FakeClock()).party("server", "server").credential)


def test_a_holder_without_an_hpke_key(world: World) -> None:
    plain = world.authority.party("plain", "holder").credential
    with expect_problem(BAD_COMMITTEE, "'plain'"):
        build(world, PLAN, holders=[plain] * 3)


def test_one_holder_three_times(world: World) -> None:
    with expect_problem(BAD_PLAN, "must differ"):
        build(world, PLAN, holders=[world.committee[0].credential] * 3)
