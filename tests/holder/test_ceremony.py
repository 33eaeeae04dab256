"""The key ceremony as pure functions: the rogue key, contradictions, and boxes out of place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from he_holder.ceremony import messages
from he_holder.ceremony.messages import Seeds
from he_holder.schemes import make_dealer
from he_holder.schemes.ckks import SecretSubshare
from he_protocol.arithmetic import ntt, residues
from he_protocol.messages import Commitment, Contribution, SealedSeeds, SubshareDigest
from he_protocol.problems import (
    CEREMONY_CONFLICT,
    COMMITMENT_BROKEN,
    DIGEST_MISMATCH,
    MALFORMED,
    RESIDUE_RANGE,
    ProblemType,
)
from he_protocol.schemes.ckks import Ckks, decode
from he_protocol.sharing import Sharing
from he_testing.problems import expect_problem
from tests.support.parties import World, random_integers

SEEN = b"\x05" * 32


@dataclass
class Dealt:
    """A whole ceremony, with every message kept."""

    world: World
    own: list[Seeds]
    contributions: list[Contribution]
    seeds: list[Seeds]
    packed: list[dict[int, bytes]]
    commitments: list[Commitment]
    bodies: list[bytes]


def deal(world: World) -> Dealt:
    task, count = world.task, world.holders
    own = [messages.draw_seeds(task.sharing, i) for i in range(count)]
    posts = [messages.contribute(task, i, seeds) for i, seeds in enumerate(own)]
    seeds = [messages.subshare_seeds(task, i, own[i], posts, key) for i, key in enumerate(world.hpke)]
    dealer = make_dealer(task)
    packed = [{p: residues.pack(dealer.public_key_share(s), dealer.layout) for p, s in mine.items()} for mine in seeds]
    commitments = [messages.commit(task, i, SEEN, packed[i]) for i in range(count)]
    bodies = [messages.reveal(task, i, SEEN, packed[i])[1] for i in range(count)]
    return Dealt(world, own, posts, seeds, packed, commitments, bodies)


@pytest.fixture(scope="module")
def dealt() -> Dealt:
    return deal(World())


@pytest.mark.parametrize("holders", [2, 3])
def test_rogue_key(tmp_path: Path, holders: int) -> None:
    """The last holder alone knows a part. It waits for the others' parts, then picks its own.

    Unchecked, the joint key is one whose secret the attacker knows: it reads a TenSEAL ciphertext alone.
    """
    dealt = deal(World(holders, {"threshold": holders}))
    world, task, layout = dealt.world, dealt.world.task, make_dealer(dealt.world.task).layout
    last = holders - 1
    assert [task.sharing.holders_of(part) for part in messages.revealed_shares(task.sharing, last)] == [(last,)]

    stolen = b"\x66" * 32
    target = make_dealer(task).public_key_share(stolen)
    primes = np.array(layout.moduli, dtype=np.uint64)[None, :, None]
    for body in dealt.bodies[:last]:
        target = (target + primes - residues.unpack(body, layout)) % primes
    rogue = [*dealt.bodies[:last], residues.pack(target, layout)]
    joint = messages.joint_key(layout, rogue)
    assert joint == residues.pack(make_dealer(task).public_key_share(stolen), layout)
    assert joint != messages.joint_key(layout, dealt.bodies)

    world.dealt = (dealt.seeds, joint)
    secret = random_integers(task.length, 7, 1 << 20)
    sent = world.encrypt(secret, tmp_path)
    assert (read_alone(world, sent, stolen) == secret).all()

    agreed = messages.check_commitments(task, dealt.commitments)
    messages.check_reveals(task, layout, dealt.bodies, agreed)
    with expect_problem(COMMITMENT_BROKEN, world.committee[last].name):
        messages.check_reveals(task, layout, rogue, agreed)


def read_alone(world: World, body: dict[str, bytes], seed: bytes) -> np.ndarray:
    """c0 + c1*s, decoded, with the secret that follows from one seed."""
    scheme = world.task.scheme
    assert isinstance(scheme, Ckks)
    layout, moduli = scheme.layout(world.task.length), scheme.profile.data_moduli
    s = ntt.lift(SecretSubshare.derive(seed).secret(scheme.profile), moduli)
    ntt.forward(s, moduli)
    opened = ntt.multiply(residues.unpack(body["c1"], layout), s, moduli)
    residues.add(opened, residues.unpack(body["c0"], layout), layout)
    return np.rint(decode(opened, scheme.profile)[: world.task.length])


def test_an_honest_joint_key_is_nobodys(tmp_path: Path) -> None:
    """The control: under the honest joint key, one part's secret reads nothing."""
    dealt = deal(World(2, {"threshold": 2}))
    dealt.world.dealt = (dealt.seeds, messages.joint_key(make_dealer(dealt.world.task).layout, dealt.bodies))
    secret = random_integers(dealt.world.task.length, 7, 1 << 20)
    sent = dealt.world.encrypt(secret, tmp_path)
    assert not (read_alone(dealt.world, sent, next(iter(dealt.seeds[1].values()))) == secret).any()


def test_holders_of_a_part_derive_the_same_seed(dealt: Dealt) -> None:
    sharing = dealt.world.task.sharing
    for part in range(sharing.subshares):
        assert len({dealt.seeds[holder][part] for holder in sharing.holders_of(part)}) == 1
    assert [set(mine) for mine in dealt.seeds] == [set(sharing.subshares_of(i)) for i in range(3)]
    assert len({seed for mine in dealt.seeds for seed in mine.values()}) == sharing.subshares


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_parts_seed_depends_on_every_contribution(dealt: Dealt, changed: int) -> None:
    """One honest holder of a part suffices to make its seed unpredictable."""
    task, sharing = dealt.world.task, dealt.world.task.sharing
    own = list(dealt.own)
    own[changed] = messages.draw_seeds(sharing, changed)
    posts = list(dealt.contributions)
    posts[changed] = messages.contribute(task, changed, own[changed])
    for holder in range(3):
        seeds = messages.subshare_seeds(task, holder, own[holder], posts, dealt.world.hpke[holder])
        for part, seed in seeds.items():
            assert (seed != dealt.seeds[holder][part]) == (changed in sharing.holders_of(part))


def test_seeds_are_fresh_and_only_of_known_parts() -> None:
    one, two = (messages.draw_seeds(Sharing(3, 2), 1) for _ in range(2))
    assert set(one) == set(two) == {0, 2}
    assert len({*one.values(), *two.values()}) == 4


def test_a_part_seed_is_bound_to_task_and_epoch(dealt: Dealt) -> None:
    """A committee that meets again with the same contributions does not get the same keys."""
    world = dealt.world
    for task in (world.signed(world.task.config, epoch=2), world.signed(world.task.config, name="other")):
        posts = [messages.contribute(task, i, own) for i, own in enumerate(dealt.own)]
        seeds = messages.subshare_seeds(task, 0, dealt.own[0], posts, world.hpke[0])
        assert not set(seeds.values()) & set(dealt.seeds[0].values())


def test_everybody_computes_one_joint_key(dealt: Dealt) -> None:
    task, layout = dealt.world.task, make_dealer(dealt.world.task).layout
    key = messages.joint_key(layout, dealt.bodies)
    every = {part: data for packed in dealt.packed for part, data in packed.items()}
    total = np.sum([residues.unpack(data, layout).astype(object) for data in every.values()], axis=0)
    assert key == residues.pack((total % np.array(layout.moduli, object)[None, :, None]).astype(np.uint64), layout)
    confirmations = {messages.confirm(task, i, SEEN, key).key for i in range(3)}
    assert len(confirmations) == 1


def test_every_part_is_revealed_once() -> None:
    for sharing in (Sharing(1, 1), Sharing(3, 2), Sharing(5, 3), Sharing(4, 4)):
        revealed = [part for i in range(sharing.holders) for part in messages.revealed_shares(sharing, i)]
        assert sorted(revealed) == list(range(sharing.subshares))


def commitments(dealt: Dealt, at: int, **changes: Any) -> list[Commitment]:
    out = list(dealt.commitments)
    out[at] = replace(out[at], **changes)
    return out


def wrong_digest(commitment: Commitment) -> tuple[SubshareDigest, ...]:
    first, *rest = commitment.digests
    return (SubshareDigest(first.subshare, b"\x01" * 32), *rest)


def test_agreed_digests_are_those_of_the_parts(dealt: Dealt) -> None:
    agreed = messages.check_commitments(dealt.world.task, dealt.commitments)
    assert agreed == {entry.subshare: entry.sha256 for one in dealt.commitments for entry in one.digests}
    assert set(agreed) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: {"digests": wrong_digest(c)}, "contradicts"),
        (lambda c: {"transcript": b"\x09" * 32}, "different contributions"),
        (lambda c: {"digests": c.digests[:1]}, "not its own"),
        (lambda c: {"digests": c.digests[::-1]}, "not its own"),
        (lambda c: {"digests": (*c.digests, c.digests[-1])}, "not its own"),
        (lambda c: {"digests": (SubshareDigest(2, c.digests[0].sha256), c.digests[1])}, "not its own"),
    ],
    ids=["contradiction", "transcript", "missing", "order", "twice", "foreign"],
)
def test_commitments_that_do_not_fit(dealt: Dealt, change: Callable[[Commitment], dict[str, Any]], match: str) -> None:
    broken = commitments(dealt, 2, **change(dealt.commitments[2]))
    with expect_problem(CEREMONY_CONFLICT, match):
        messages.check_commitments(dealt.world.task, broken)


def test_the_transcript_covers_every_contribution_and_its_order() -> None:
    tokens = ["a.b.c", "d.e.f", "g.h.i"]
    seen = {messages.transcript(t) for t in (tokens, tokens[::-1], ["a.b.x", *tokens[1:]], tokens[:2], [*tokens, ""])}
    assert len(seen) == 5


@pytest.mark.parametrize("holder", [0, 1])
@pytest.mark.parametrize("byte", [0, -1])
def test_a_flipped_bit_in_a_revealed_part_breaks_its_commitment(dealt: Dealt, holder: int, byte: int) -> None:
    task = dealt.world.task
    agreed = messages.check_commitments(task, dealt.commitments)
    bodies = [bytearray(body) for body in dealt.bodies]
    bodies[holder][byte] ^= 1
    with expect_problem(COMMITMENT_BROKEN, f"'holder-{holder}'"):
        messages.check_reveals(task, make_dealer(task).layout, [bytes(body) for body in bodies], agreed)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""], ids=["short", "long", "none"]
)
def test_revealed_bytes_of_a_wrong_length(dealt: Dealt, change: Callable[[bytes], bytes]) -> None:
    task = dealt.world.task
    agreed = messages.check_commitments(task, dealt.commitments)
    with expect_problem(MALFORMED, "'holder-0'"):
        messages.check_reveals(task, make_dealer(task).layout, [change(dealt.bodies[0]), *dealt.bodies[1:]], agreed)


def test_who_is_first_to_know_nothing_reveals_nothing(dealt: Dealt) -> None:
    """In 2-of-3 the parts are known before the third holder's turn; it must not smuggle one in."""
    task = dealt.world.task
    agreed = messages.check_commitments(task, dealt.commitments)
    assert dealt.bodies[2] == b""
    with expect_problem(MALFORMED, "'holder-2'"):
        messages.check_reveals(task, make_dealer(task).layout, [*dealt.bodies[:2], dealt.bodies[0]], agreed)


def test_a_committed_part_with_a_residue_out_of_range_makes_no_key(dealt: Dealt) -> None:
    layout = make_dealer(dealt.world.task).layout
    with expect_problem(RESIDUE_RANGE):
        messages.joint_key(layout, [b"\xff" * layout.size])


def open_as_holder_1(dealt: Dealt, boxes: tuple[SealedSeeds, ...], name: str = "holder-0") -> Seeds:
    posts = [replace(dealt.contributions[0], boxes=boxes, holder=name), *dealt.contributions[1:]]
    return messages.subshare_seeds(dealt.world.task, 1, dealt.own[1], posts, dealt.world.hpke[1])


def box_for(dealt: Dealt, name: str) -> SealedSeeds:
    return next(box for box in dealt.contributions[0].boxes if box.to == name)


def test_the_box_in_its_place_opens(dealt: Dealt) -> None:
    assert open_as_holder_1(dealt, (box_for(dealt, "holder-1"),)) == dealt.seeds[1]


@pytest.mark.parametrize("count", [0, 2])
def test_a_missing_or_a_second_box(dealt: Dealt, count: int) -> None:
    with expect_problem(CEREMONY_CONFLICT, "'holder-0'"):
        open_as_holder_1(dealt, (box_for(dealt, "holder-1"),) * count)


def test_a_box_from_somebody_who_shares_no_part() -> None:
    """In n-of-n every part is known by one holder: whatever box comes is not part of the ceremony."""
    world = World(2, {"threshold": 2})
    own = [messages.draw_seeds(world.task.sharing, i) for i in range(2)]
    posts = [messages.contribute(world.task, i, seeds) for i, seeds in enumerate(own)]
    assert [post.boxes for post in posts] == [(), ()]
    posts[0] = replace(posts[0], boxes=(SealedSeeds("holder-1", b"box"),))
    with expect_problem(CEREMONY_CONFLICT):
        messages.subshare_seeds(world.task, 1, own[1], posts, world.hpke[1])


def replayed(dealt: Dealt, how: str) -> bytes:
    """A box that was honestly sealed by holder 0, but not to holder 1 for this task and epoch."""
    world, task = dealt.world, dealt.world.task
    match how:
        case "other holder":
            return box_for(dealt, "holder-2").box
        case "other epoch":
            task = world.signed(task.config, epoch=2)
        case "other task":
            task = world.signed(task.config, name="other")
        case "other sender":
            return next(box.box for box in dealt.contributions[2].boxes if box.to == "holder-1")
    return messages.contribute(task, 0, dealt.own[0]).boxes[0].box


@pytest.mark.parametrize("how", ["other holder", "other epoch", "other task", "other sender"])
def test_a_replayed_box_does_not_open(dealt: Dealt, how: str) -> None:
    with expect_problem(DIGEST_MISMATCH):
        open_as_holder_1(dealt, (SealedSeeds("holder-1", replayed(dealt, how)),))


@pytest.mark.parametrize(("length", "problem"), [(31, MALFORMED), (33, MALFORMED), (64, MALFORMED), (0, MALFORMED)])
def test_seeds_of_a_wrong_length(dealt: Dealt, length: int, problem: ProblemType) -> None:
    """Holders 0 and 1 share one part of 2-of-3: exactly one seed of 32 bytes."""
    world = dealt.world
    box = messages.seal(b"s" * length, world.hpke[1].public, messages._info(world.task, "holder-0", "holder-1"))  # type: ignore[attr-defined]
    with expect_problem(problem, "expected 32"):
        open_as_holder_1(dealt, (SealedSeeds("holder-1", box),))
