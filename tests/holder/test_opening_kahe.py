"""Scheme `kahe` from sealing to an opened sum, in memory: every profile, committee and quorum."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import sqrt
from typing import Any

import numpy as np
import pytest

from he_client.schemes.kahe import JOB, KaheEncryptor
from he_holder.schemes import make_share_maker
from he_protocol.arithmetic.residues import unpack
from he_protocol.config import TensorSpec
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes import scheme
from he_protocol.schemes.kahe import PROFILES, Kahe
from he_testing.problems import expect_problem
from tests.support.kahe import SECURE, FixedWords
from tests.support.openings import Sent, ask, combine, decrypt_sum, folded, send_kahe, shares
from tests.support.parties import World, random_integers

COMMITTEES = pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (3, 2), (5, 3)])


def world(length: int, profile: str = "kahe-14", holders: int = 3, threshold: int = 2) -> World:
    plan = {"scheme": "kahe", "profile": profile, "threshold": threshold, "scale": 16.0}
    return World(holders, plan, (TensorSpec("w", (length,)),))


def bound(made: World, clients: int) -> int:
    """So large that sums nearly fill the modulus."""
    return (made.task.scheme.capacity - 300) // clients


def send_all(made: World, clients: int, **how: Any) -> list[Sent]:
    most = bound(made, clients)
    return [send_kahe(made, f"client-{i}", random_integers(made.task.length, i, most), **how) for i in range(clients)]


def errors(made: World, opened: np.ndarray, sent: list[Sent]) -> np.ndarray:
    return opened - np.sum([one.integers for one in sent], axis=0)


@COMMITTEES
@pytest.mark.parametrize("name", SECURE)
def test_every_quorum_opens_the_sum_and_exactly_the_summed_errors(name: str, holders: int, threshold: int) -> None:
    """17 polynomials and a piece: a whole group of 16, then a partial one."""
    n, clients = PROFILES[name].degree, 4
    made = world(17 * n + 5, name, holders, threshold)
    drawn = [FixedWords(bytes([i])) for i in range(clients)]
    most = bound(made, clients)
    sent = [
        send_kahe(made, f"client-{i}", random_integers(made.task.length, i, most), words=words)
        for i, words in enumerate(drawn)
    ]
    request = ask(made, [one.update for one in sent])
    released = [shares(made, holder, request, sent) for holder in range(holders)]
    opened = [
        combine(made, {part: data for holder in quorum for part, data in released[holder].items()}, sent)
        for quorum in combinations(range(holders), threshold)
    ]
    assert all((one == opened[0]).all() for one in opened)
    left = errors(made, opened[0], sent)
    wanted = sum(words.errors(PROFILES[name], 18 * n) for words in drawn)[: left.size]  # type: ignore[index]
    np.testing.assert_array_equal(left, wanted)
    std = made.task.scheme.error_std * sqrt(clients)
    assert abs(left.std() / std - 1) < 5 / sqrt(2 * left.size)
    assert abs(left.mean()) < 5 * std / sqrt(left.size)
    assert np.abs(left).max() < 8 * std


@COMMITTEES
def test_holders_of_a_part_release_the_same_bytes_and_a_retry_repeats_them(holders: int, threshold: int) -> None:
    made = world(10, holders=holders, threshold=threshold)
    sent = send_all(made, 3)
    request = ask(made, [one.update for one in sent])
    released = [shares(made, holder, request, sent) for holder in range(holders)]
    assert released == [shares(made, holder, request, sent) for holder in range(holders)]
    for holder, mine in enumerate(released):
        assert tuple(mine) == made.task.sharing.subshares_of(holder)
    for part in range(made.task.sharing.subshares):
        assert len({released[holder][part] for holder in made.task.sharing.holders_of(part)}) == 1


def test_the_order_of_updates_does_not_matter() -> None:
    made = world(10)
    sent = send_all(made, 3)
    opener = make_share_maker(made.task, 0, made.hpke[0], {})
    one, two = opener.begin(), opener.begin()
    for update in sent:
        one.add(update.header, update.body["shares"])
    for update in reversed(sent):
        two.add(update.header, update.body["shares"])
    assert dict(one.release(bytes(32), 0)) == dict(two.release(b"x" * 32, 1))


def test_one_holder_too_few_opens_nothing() -> None:
    """Any t-1 holders miss a part; without it even the key's range is wrong."""
    made = world(10, holders=5, threshold=3)
    sent = send_all(made, 3)
    request = ask(made, [one.update for one in sent])
    layout = made.task.scheme.share_layout(10)
    for pair in combinations(range(5), 2):
        parts = {part: data for holder in pair for part, data in shares(made, holder, request, sent).items()}
        missing = set(range(made.task.sharing.subshares)) - set(parts)
        assert len(missing) == 1
        vectors = [unpack(data, layout) for data in parts.values()]
        with expect_problem(COMBINE_REFUSED, "out of range"):
            scheme.combine(made.task.scheme, folded(made, sent), vectors, 10, 3, made.task.epoch_id)


@pytest.mark.parametrize("length", [1, 511, 512, 513, 16 * 512, 16 * 512 + 1, JOB, JOB + 1, 2 * JOB + 33 * 512 + 3])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_lengths_and_threads(length: int, threads: int) -> None:
    """One value, whole rows, whole groups, whole jobs, and one more."""
    made = world(length)
    sent = send_all(made, 3, threads=threads)
    assert [len(one.body["b"]) for one in sent] == [made.task.section("sum").size] * 3
    assert [len(one.body["shares"]) for one in sent] == [made.task.section("key").size] * 3
    left = errors(made, decrypt_sum(made, ask(made, [one.update for one in sent]), sent), sent)
    assert left.shape == (length,)
    assert np.abs(left).max() < 8 * 6.4 * sqrt(3)
    if length > 500:
        assert abs(left.std() / (6.4 * sqrt(3)) - 1) < 5 / sqrt(2 * length)


@pytest.mark.parametrize("threads", [1, 3])
async def test_the_source_is_asked_once_for_everything_and_bytes_come_in_order(threads: int) -> None:
    made = world(3 * JOB + 3)
    asked: list[tuple[int, int]] = []
    written: list[tuple[str, int]] = []

    def source(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.zeros(stop - start, dtype=np.int64)

    sealer = KaheEncryptor(made.task, "client", threads=threads)
    await sealer.encrypt(bytes(16), source, lambda part, data: written.append((part, len(data))))
    covered = sorted(asked)
    assert covered[0][0] == 0
    assert covered[-1][1] == made.task.length
    assert all(one[1] == two[0] for one, two in pairwise(covered))
    assert [part for part, _ in written] == ["b"] * (len(written) - 1) + ["shares"]
    assert [sum(size for p, size in written if p == part.name) for part in made.task.body] == [
        part.size for part in made.task.body
    ]
    assert max(size for _, size in written) < 1 << 18  # never the whole at once


async def test_a_source_that_fails_stops_the_sealing() -> None:
    made = world(4 * JOB)

    def source(start: int, stop: int) -> np.ndarray:
        if start:
            raise OSError("the disk is gone")
        return np.zeros(stop - start, dtype=np.int64)

    written: list[str] = []
    with pytest.raises(OSError, match="the disk is gone"):
        await KaheEncryptor(made.task, "client", threads=2).encrypt(
            bytes(16), source, lambda part, _: written.append(part)
        )
    assert "shares" not in written


def test_where_the_vector_ends_errors_hide_the_product_too() -> None:
    """Coefficients beyond the length travel as a*s + e: a*s alone would give s away by linear algebra."""
    made = world(1)
    words = FixedWords(b"one")
    sent = send_kahe(made, "client", random_integers(1, 1, 5), words=words)
    profile, layout = PROFILES["kahe-14"], made.task.section("sum").layout
    assert isinstance(made.task.scheme, Kahe)
    secret = (words.secret(profile) % (1 << 32)).astype(np.uint64).reshape(1, 1, -1)
    total = unpack(sent.body["b"], layout)  # type: ignore[arg-type]
    opened = scheme.combine(made.task.scheme, total, [secret], profile.degree, 1, made.task.epoch_id)
    assert 5 < opened[1:].std() < 8
    np.testing.assert_array_equal(opened[1:], words.errors(profile, profile.degree)[1:])
