"""From the ceremony to an opened sum, in memory: real TenSEAL, real keys."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from he_holder.schemes import make_share_maker
from he_protocol.arithmetic import residues
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import UpdateHeader
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.scheme import combine
from tests.support.parties import World, random_integers

MANIFEST = bytes(range(32))


def shares_of(
    world: World, bodies: list[dict[str, bytes]], holder: int, manifest: bytes = MANIFEST, bucket: int = 0
) -> dict[int, bytes]:
    total = make_share_maker(world.task, holder, world.hpke[holder], world.dealt[0][holder]).begin()
    header = read_unverified(world.update("client").header, UpdateHeader)
    for body in bodies:
        total.add(header, body["c1"])
    return dict(total.release(manifest, bucket))


def open_with(world: World, bodies: list[dict[str, bytes]], parts: dict[int, bytes]) -> np.ndarray:
    scheme, layout = world.task.scheme, world.task.scheme.share_layout(world.task.length)
    total = layout.zeros()
    for body in bodies:
        residues.fold(total.reshape(layout.rows, layout.degree), body["c0"], layout)
    vectors = [residues.unpack(parts[i], layout) for i in range(world.task.sharing.subshares)]
    return combine(scheme, total, vectors, world.task.length, len(bodies), world.task.epoch_id)


@pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (3, 2), (5, 3)])
def test_every_quorum_opens_the_exact_sum(tmp_path: Path, holders: int, threshold: int) -> None:
    world = World(holders, {"threshold": threshold}, (TensorSpec("w", (4100,)),))
    vectors = [random_integers(4100, seed, 1 << 24) for seed in range(3)]
    bodies = [world.encrypt(vector, tmp_path) for vector in vectors]
    shares = [shares_of(world, bodies, holder) for holder in range(holders)]
    for quorum in combinations(range(holders), threshold):
        parts = {part: data for holder in quorum for part, data in shares[holder].items()}
        assert (open_with(world, bodies, parts) == sum(vectors)).all()


def test_holders_of_a_part_release_the_same_bytes_and_a_retry_repeats_them(tmp_path: Path) -> None:
    world = World()
    bodies = [world.encrypt(random_integers(10, seed), tmp_path) for seed in range(2)]
    first, again = shares_of(world, bodies, 0), shares_of(world, bodies, 0)
    other = shares_of(world, bodies, 1)
    assert first == again
    shared = set(first) & set(other)
    assert shared
    assert all(first[part] == other[part] for part in shared)


def test_noise_differs_between_manifests_and_between_buckets(tmp_path: Path) -> None:
    world = World()
    bodies = [world.encrypt(random_integers(10, 1), tmp_path)]
    one, two, three = (shares_of(world, bodies, 0, *where) for where in ((MANIFEST, 0), (b"x" * 32, 0), (MANIFEST, 1)))
    assert all(len({one[part], two[part], three[part]}) == 3 for part in one)


def test_a_missing_or_wrong_part_never_opens(tmp_path: Path) -> None:
    world = World()
    bodies = [world.encrypt(random_integers(10, seed), tmp_path) for seed in range(2)]
    parts = shares_of(world, bodies, 0) | shares_of(world, bodies, 1)
    blank = residues.pack(world.task.scheme.share_layout(10).zeros(), world.task.scheme.share_layout(10))
    for part in parts:
        with pytest.raises(ProblemError) as refused:
            open_with(world, bodies, parts | {part: blank})
        assert refused.value.problem is COMBINE_REFUSED
