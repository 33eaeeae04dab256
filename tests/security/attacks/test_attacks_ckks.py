"""What a lying server gains when one check is missing: real TenSEAL ciphertexts, real shares, one victim.

Every attack runs twice: with the check off it reads the victim's vector exactly, with it on it is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.exc import IntegrityError

from he_holder import rules
from he_holder.ledger import Ledger
from he_holder.rules import Rule, check_all
from he_holder.schemes import make_share_maker
from he_protocol.arithmetic import ntt, residues
from he_protocol.messages import SignedUpdate
from he_protocol.problems import (
    BAD_SIGNATURE,
    DUPLICATE_CLIENT,
    DUPLICATE_UPDATE,
    NUMBER_USED,
    TOO_FEW_CLIENTS,
    UPDATE_OPENED_BEFORE,
    ProblemType,
)
from he_protocol.schemes.ckks import Ckks
from he_testing.problems import expect_problem
from tests.support.openings import Sent, after, ask, decrypt_sum, send
from tests.support.parties import World
from tests.support.rules import without


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contexts")


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World()


@pytest.fixture(scope="module")
def victim(world: World, folder: Path) -> Sent:
    return send(world, "victim", folder, 1)


@pytest.fixture(scope="module")
def others(world: World, folder: Path) -> list[Sent]:
    return [send(world, f"client-{i}", folder, 10 + i) for i in range(3)]


def heads(sent: list[Sent]) -> list[SignedUpdate]:
    return [one.update for one in sent]


def summed(sent: list[Sent]) -> np.ndarray:
    return np.sum([one.integers for one in sent], axis=0)


def test_without_an_attack_only_the_sum_is_seen(world: World, victim: Sent, others: list[Sent]) -> None:
    request = ask(world, heads([*others, victim]))
    check_all(request)
    assert (decrypt_sum(world, request, [*others, victim]) == summed([*others, victim])).all()


@pytest.mark.parametrize(
    ("number", "rule", "problem"),
    [(2, rules.updates_fresh, UPDATE_OPENED_BEFORE), (1, rules.number_unused, NUMBER_USED)],
    ids=["another_number", "same_number"],
)
def test_two_openings_that_differ_in_one_client_give_it_away(
    world: World, victim: Sent, others: list[Sent], number: int, rule: Rule, problem: ProblemType
) -> None:
    """Once under another opening number, once under the same."""
    everybody = [*others, victim]
    first = ask(world, heads(everybody))
    check_all(first)
    second = after(first, ask(world, heads(others), number=number))
    check_all(second, without(rule))
    difference = decrypt_sum(world, first, everybody) - decrypt_sum(world, second, others)
    assert (difference == victim.integers).all()
    with expect_problem(problem):
        check_all(second)


@pytest.mark.parametrize(
    ("number", "rule", "problem"),
    [(2, rules.updates_fresh, UPDATE_OPENED_BEFORE), (1, rules.number_unused, NUMBER_USED)],
    ids=["another_number", "same_number"],
)
async def test_the_ledgers_primary_keys_are_the_second_line(
    tmp_path: Path, world: World, victim: Sent, others: list[Sent], number: int, rule: Rule, problem: ProblemType
) -> None:
    ledger = await Ledger.open(tmp_path / "ledger.db")
    await ledger.join(world.task, "http://server", 0.0)
    first = await ledger.decide(ask(world, heads([*others, victim])))
    second = ask(world, heads(others), number=number)
    with expect_problem(problem):
        await ledger.decide(second)
    with pytest.raises(IntegrityError, match="UNIQUE"):
        await ledger.decide(second, without(rule, rules.bases_fresh))
    assert [vote.manifest_hash for vote in await ledger.votes(world.task.hash)] == [first.manifest_hash]
    await ledger.close()


def test_one_sybil_twice_and_a_victim(world: World, folder: Path, victim: Sent) -> None:
    """min_clients is met by one client that knows its own two vectors."""
    mallory = [send(world, "mallory", folder, seed) for seed in (2, 3)]
    request = ask(world, heads([victim, *mallory]))
    check_all(request, without(rules.clients_distinct))
    assert (decrypt_sum(world, request, [victim, *mallory]) - summed(mallory) == victim.integers).all()
    with expect_problem(DUPLICATE_CLIENT):
        check_all(request)


async def test_the_victims_own_update_as_its_crowd(tmp_path: Path, world: World, victim: Sent) -> None:
    """The same update three times is three times the vector; two rules and a primary key stand in the way."""
    request = ask(world, heads([victim] * 3))
    check_all(request, without(rules.clients_distinct, rules.updates_distinct))
    assert (decrypt_sum(world, request, [victim]) == 3 * victim.integers).all()
    with expect_problem(DUPLICATE_CLIENT):
        check_all(request)
    with expect_problem(DUPLICATE_UPDATE):
        check_all(request, without(rules.clients_distinct))
    ledger = await Ledger.open(tmp_path / "ledger.db")
    await ledger.join(world.task, "http://server", 0.0)
    with pytest.raises(IntegrityError, match="UNIQUE"):
        await ledger.decide(request, without(rules.clients_distinct, rules.updates_distinct))
    assert await ledger.votes(world.task.hash) == []
    await ledger.close()


def test_a_copied_update_id_makes_the_victim_its_own_crowd(world: World, victim: Sent) -> None:
    """Colluding clients reuse the victim's id: a server that serves bodies by id serves the victim's for all."""
    mates = [world.update(name, victim.body, update_id=victim.header.update_id) for name in ("mallory", "mallory-2")]
    request = ask(world, [victim.update, *mates])
    check_all(request, without(rules.updates_distinct))
    assert (decrypt_sum(world, request, [victim]) == 3 * victim.integers).all()
    with expect_problem(DUPLICATE_UPDATE):
        check_all(request)


def test_a_crowd_that_the_server_made_up(world: World, victim: Sent, folder: Path) -> None:
    """Headers in the names of enrolled clients, signed by the server, over vectors that it knows."""
    fakes = []
    for seed, name in enumerate(("client-0", "client-1")):
        honest = send(world, name, folder, 50 + seed)
        forged = SignedUpdate(world.server.key.sign(honest.header), honest.update.credential)
        fakes.append(replace(honest, update=forged))
    request = ask(world, heads([victim, *fakes]))
    check_all(request, without(rules.headers_signed))
    assert (decrypt_sum(world, request, [victim, *fakes]) - summed(fakes) == victim.integers).all()
    with expect_problem(BAD_SIGNATURE):
        check_all(request)


def test_a_manifest_of_one(world: World, victim: Sent) -> None:
    request = ask(world, [victim.update])
    check_all(request, without(rules.buckets_large_enough))
    assert (decrypt_sum(world, request, [victim]) == victim.integers).all()
    with expect_problem(TOO_FEW_CLIENTS):
        check_all(request)


def test_a_victim_alone_in_a_bucket(folder: Path) -> None:
    """The round is large enough; the victim's bucket is not, and is opened on its own."""
    world = World(plan={"buckets": 2})
    victim = send(world, "victim", folder, 1)
    crowd = [send(world, f"client-{i}", folder, 10 + i) for i in range(3)]
    request = ask(world, heads([victim, *crowd]), buckets={"victim": 1})
    check_all(request, without(rules.buckets_large_enough))
    assert (decrypt_sum(world, request, [victim, *crowd], bucket=1) == victim.integers).all()
    with expect_problem(TOO_FEW_CLIENTS, "bucket 1 of round 1"):
        check_all(request)


def test_one_noise_for_two_buckets_would_give_a_key_part_away(world: World, victim: Sent, others: list[Sent]) -> None:
    """Their shares' difference over (c1 - c1') is s_A, ternary: no noise is left. Every bucket has its own."""
    layout = world.task.scheme.share_layout(world.task.length)
    assert isinstance(world.task.scheme, Ckks)
    moduli = world.task.scheme.profile.data_moduli
    opener = make_share_maker(world.task, 0, world.hpke[0], world.seeds(0))
    c1 = [residues.unpack(one.body["c1"], layout) for one in (victim, others[0])]
    sums = [opener.begin(), opener.begin()]
    for total, one in zip(sums, (victim, others[0]), strict=True):
        total.add(one.header, one.body["c1"])

    def guess(buckets: tuple[int, int]) -> set[int]:
        """What the coefficients of the quotient are, modulo the first prime."""
        shares = [
            residues.unpack(dict(total.release(bytes(32), bucket))[1], layout)
            for total, bucket in zip(sums, buckets, strict=True)
        ]
        prime = moduli[0]
        top, bottom = (
            [int(x) - int(y) for x, y in zip(pair[0][0, 0], pair[1][0, 0], strict=True)] for pair in (shares, c1)
        )
        quotient = np.zeros((1, len(moduli), layout.degree), dtype=np.uint64)
        quotient[0, 0] = [a * pow(b, -1, prime) % prime for a, b in zip(top, bottom, strict=True)]
        ntt.inverse(quotient, moduli)
        return {int(value) for value in quotient[0, 0]}

    assert guess((0, 0)) == {0, 1, moduli[0] - 1}
    assert len(guess((0, 1))) > layout.degree // 2


def test_our_floor_holds_where_the_task_allows_one(folder: Path) -> None:
    """An authority that sells a task with min_clients = 1 does not buy the holder."""
    world = World(plan={"min_clients": 1})
    victim = send(world, "victim", folder, 1)
    check_all(ask(world, [victim.update], min_clients_floor=1))
    assert (decrypt_sum(world, ask(world, [victim.update]), [victim]) == victim.integers).all()
    with expect_problem(TOO_FEW_CLIENTS, "at least 2"):
        check_all(ask(world, [victim.update], min_clients_floor=2))
