"""A server that lies to clients and key holders, against the default scheme: what it reads with a check off."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from he_holder import rules
from he_holder.hpke_key import HpkeKey
from he_holder.rules import Rule, check_all
from he_protocol.arithmetic.residues import unpack
from he_protocol.config import TensorSpec
from he_protocol.identity.jws import SigningKey
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import BAD_SIGNATURE, NUMBER_USED, UPDATE_OPENED_BEFORE, ProblemType
from he_protocol.schemes.kahe import PROFILES
from he_protocol.task import Task
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.openings import Sent, after, ask, decrypt_sum, send_kahe
from tests.support.parties import World, random_integers
from tests.support.rules import without

PROFILE = PROFILES["kahe-14"]
D = 700
ERROR = 8 * 6.4
"""The largest that one update's error can be; the values below are in ±1000."""


@pytest.fixture
def world() -> World:
    return World(3, {"scheme": "kahe", "profile": PROFILE.name, "scale": 16.0}, (TensorSpec("w", (D,)),))


def send(world: World, name: str, seed: int) -> Sent:
    return send_kahe(world, name, random_integers(D, seed, 1000))


@pytest.mark.parametrize(
    ("number", "rule", "problem"),
    [(2, rules.updates_fresh, UPDATE_OPENED_BEFORE), (1, rules.number_unused, NUMBER_USED)],
    ids=["another_number", "same_number"],
)
def test_a_manifest_that_shrinks_by_one_gives_the_victim_away(
    world: World, number: int, rule: Rule, problem: ProblemType
) -> None:
    """The difference of two openings is the victim's vector and its error, nothing else."""
    victim, others = send(world, "victim", 0), [send(world, f"client-{i}", i) for i in range(1, 4)]
    first = ask(world, [one.update for one in [*others, victim]])
    second = after(first, ask(world, [one.update for one in others], number=number))
    check_all(first)
    check_all(second, without(rule))
    seen = decrypt_sum(world, first, [*others, victim]) - decrypt_sum(world, second, others)
    assert np.abs(seen - victim.integers).max() <= ERROR
    with expect_problem(problem):
        check_all(second)


def test_a_task_with_the_servers_keys_in_the_holders_place(world: World) -> None:
    """Off, a client that believes the server's signature: the server alone opens its update."""
    liar, own = SigningKey.generate(), [HpkeKey.generate() for _ in range(3)]
    honest = world.task.config.committee.holders
    holders = tuple(replace(h, hpke=key.public) for h, key in zip(honest, own, strict=True))
    token = liar.sign(changed(world.task.config, holders=holders))
    with expect_problem(BAD_SIGNATURE):
        Task.from_token(token, world.authority.key.public)
    world.__dict__["task"], world.hpke = Task.from_token(token, liar.public), own
    victim = send(world, "victim", 0)
    seen = decrypt_sum(world, ask(world, [victim.update]), [victim])
    assert np.abs(seen - victim.integers).max() <= ERROR


def test_a_public_polynomial_of_the_servers_choice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a = 0 an update would be its vector in the clear. `a` follows from the signed task, and is never sent."""

    class Zero:
        def __init__(self, *_: object) -> None:
            pass

        def groups(self, _: int, count: int) -> Integers:
            return np.zeros((16 * count, PROFILE.degree), dtype=np.uint64)

    honest = residues_of(world, send(world, "victim", 0))
    monkeypatch.setattr("he_client.schemes.kahe.CommonProduct", Zero)
    attacked = residues_of(world, send(world, "victim", 0))
    vector = random_integers(D, 0, 1000)
    assert np.abs(centred(attacked - vector)).max() <= ERROR
    assert abs(centred(honest - vector).std() / (PROFILE.modulus / np.sqrt(12)) - 1) < 0.1  # uniform


def residues_of(world: World, sent: Sent) -> Integers:
    layout = world.task.section("sum").layout
    assert layout is not None
    return unpack(sent.body["b"], layout).reshape(-1)[:D].astype(np.int64)


def centred(values: Integers) -> Integers:
    half = PROFILE.modulus // 2
    return (values + half) % PROFILE.modulus - half
