"""Scheme `kahe` under attack: envelopes moved or changed, poisoned keys, lying holders, a key used twice."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec.structs import replace

from he_client.quantise import secret_words
from he_client.schemes.kahe import KaheEncryptor, make_encryptor
from he_holder.rules import check_all
from he_holder.schemes import make_share_maker
from he_protocol.arithmetic.ntt_lanes import CommonProduct
from he_protocol.arithmetic.residues import unpack
from he_protocol.config import TensorSpec
from he_protocol.envelope import seal as seal_envelope
from he_protocol.problems import COMBINE_REFUSED, DIGEST_MISMATCH, WRONG_SIZE
from he_protocol.schemes import kahe
from he_protocol.schemes.kahe import (
    NONCE,
    PROFILES,
    WORD,
    Kahe,
    common_key,
    envelope_info,
    expand_subshare,
    explicit_subshare,
)
from he_protocol.sharing import choices
from he_testing.board import MemoryBoard
from he_testing.problems import expect_problem
from tests.support.kahe import FixedWords
from tests.support.openings import Sent, ask, combine, decrypt_sum, folded, send_kahe, shares
from tests.support.parties import World, random_integers
from tests.support.poison import boxes, poisoned

PROFILE = PROFILES["kahe-14"]
Q = PROFILE.modulus
D = 700


def world(holders: int = 3, threshold: int = 2) -> World:
    plan = {"scheme": "kahe", "profile": PROFILE.name, "threshold": threshold, "scale": 16.0}
    return World(holders, plan, (TensorSpec("w", (D,)),))


@pytest.fixture(scope="module")
def made() -> World:
    return world()


@pytest.fixture(scope="module")
def victim(made: World) -> Sent:
    return send_kahe(made, "victim", random_integers(D, 1, 1000))


def add(made: World, sent: Sent, holder: int = 0, body: bytes | None = None, **changes: Any) -> None:
    """One holder takes one update, with another body or header."""
    total = make_share_maker(made.task, holder, made.hpke[holder], {}).begin()
    total.add(replace(sent.header, **changes), sent.body["shares"] if body is None else body)


def test_an_honest_body_is_taken_by_every_holder(made: World, victim: Sent) -> None:
    for holder in range(3):
        add(made, victim, holder)
    assert len(boxes(made, victim.body["shares"])[1]) == 3


@pytest.mark.parametrize("holder", [0, 1])
@pytest.mark.parametrize("change", [{"update_id": bytes(16)}, {"client": "mallory"}], ids=["update", "client"])
def test_an_envelope_of_another_update_or_client_does_not_open(
    made: World, victim: Sent, holder: int, change: dict[str, Any]
) -> None:
    """The attack: mallory sends the victim's shares as its own, to have the victim's key opened in another sum."""
    with expect_problem(DIGEST_MISMATCH, "envelope does not open"):
        add(made, victim, holder, **change)


def test_an_envelope_of_another_epoch_or_task_does_not_open(made: World, victim: Sent) -> None:
    for change in ({"epoch": 2}, {"name": "other-task"}):
        other = made.signed(made.task.config, **change)
        total = make_share_maker(other, 0, made.hpke[0], {}).begin()
        with expect_problem(DIGEST_MISMATCH):
            total.add(victim.header, victim.body["shares"])


def test_another_holders_envelope_does_not_open(made: World, victim: Sent) -> None:
    """Neither by position nor by key: with two holders' seeds one would know every part of 2-of-3."""
    explicit, (first, second, third) = boxes(made, victim.body["shares"])
    for holder, swapped in ((0, (second, first, third)), (1, (second, first, third)), (2, (first, third, second))):
        with expect_problem(DIGEST_MISMATCH):
            add(made, victim, holder, explicit + b"".join(swapped))
    update, entries = (made.task.epoch_id, "victim", victim.header.update_id), made.task.config.committee.holders
    own, others = envelope_info(*update, entries[0].name), envelope_info(*update, entries[1].name)
    seeds = made.hpke[0].open(first, own)
    add(made, victim, 0, explicit + seal_envelope(seeds, entries[0].hpke, own) + second + third)
    with expect_problem(DIGEST_MISMATCH):  # the same to the same key, but as holder 1's
        add(made, victim, 0, explicit + seal_envelope(seeds, entries[0].hpke, others) + second + third)


@pytest.mark.parametrize("place", [0, 1000, 2047, 2048, 2063])
def test_a_changed_explicit_part_does_not_open(made: World, victim: Sent, place: int) -> None:
    """Coefficients and tag; holder 2 of 2-of-3 does not know this part and cannot tell."""
    changed = bytearray(victim.body["shares"])
    changed[place] ^= 1
    for holder in made.task.sharing.holders_of(explicit_subshare(made.task.sharing)):
        with expect_problem(DIGEST_MISMATCH, "explicit key share of update " + victim.header.update_id.hex()):
            add(made, victim, holder, bytes(changed))


@pytest.mark.parametrize("place", [0, 1087, 1088, 1119, 1120, 1183, 1199])
def test_a_changed_envelope_does_not_open(made: World, victim: Sent, place: int) -> None:
    """Either half of the encapsulated key, the seeds, the tag."""
    assert isinstance(made.task.scheme, Kahe)
    changed = bytearray(victim.body["shares"])
    changed[made.task.scheme.explicit_bytes + place] ^= 1
    with expect_problem(DIGEST_MISMATCH, "envelope does not open"):
        add(made, victim, 0, bytes(changed))
    add(made, victim, 1, bytes(changed))


def test_a_refused_update_leaves_the_sum_as_it_was(made: World, victim: Sent) -> None:
    """The contract of `KeySum.add`."""
    total = make_share_maker(made.task, 0, made.hpke[0], {}).begin()
    total.add(victim.header, victim.body["shares"])
    before = dict(total.release(bytes(32), 0))
    with expect_problem(DIGEST_MISMATCH):
        total.add(victim.header, b"\0" + victim.body["shares"][1:])
    assert dict(total.release(bytes(32), 0)) == before


def test_an_explicit_part_under_another_key_does_not_open(made: World, victim: Sent) -> None:
    """Of the same client and the same update, sealed a second time."""
    again = made.encrypt_kahe("victim", victim.header.update_id, victim.integers)
    explicit, _ = boxes(made, again["shares"])
    _, envelopes = boxes(made, victim.body["shares"])
    with expect_problem(DIGEST_MISMATCH, "explicit key share"):
        add(made, victim, 0, explicit + b"".join(envelopes))


def test_a_body_of_another_size_is_refused(made: World, victim: Sent) -> None:
    """By the signed sizes first; cut short it would not open either."""
    b, shared = victim.header.sections
    others = [made.update("alice"), made.update("bob")]
    check_all(ask(made, [victim.update, *others]))
    for size in (shared.size - 1, shared.size + 1, 0):
        update = made.update("victim", sections=(b, replace(shared, size=size)))
        with expect_problem(WRONG_SIZE):
            check_all(ask(made, [update, *others]))
    for cut in (0, 100, 2063, 2064, 2065, 3263):
        with expect_problem(DIGEST_MISMATCH):
            add(made, victim, 0, victim.body["shares"][:cut])


def test_seeds_made_by_hand_are_the_sealers_own(made: World) -> None:
    """So that the attacks below differ from an honest update by their change alone."""
    sent = poisoned(made, "honest", lambda seeds, index: seeds)
    left = decrypt_sum(made, ask(made, [sent.update]), [sent]) - sent.integers
    assert np.abs(left).max() <= 51


def test_parts_that_do_not_sum_to_a_key_are_refused_and_would_publish_noise(made: World) -> None:
    """A client's seed is wrong, the same for every holder: all agree, and the sum is no key of three clients."""
    others = [send_kahe(made, f"client-{i}", random_integers(D, i, 1000)) for i in range(2)]
    bad = poisoned(made, "mallory", lambda seeds, index: [bytes(32), *seeds[1:]])
    everybody = [*others, bad]
    request = ask(made, [one.update for one in everybody])
    with expect_problem(COMBINE_REFUSED, "out of range"):
        decrypt_sum(made, request, everybody)
    sections = {part: data for holder in (0, 1) for part, data in shares(made, holder, request, everybody).items()}
    layout = made.task.scheme.share_layout(D)
    key = np.sum([unpack(sections[i], layout).reshape(-1) for i in range(3)], axis=0) % np.uint64(WORD)
    product = CommonProduct(common_key(made.task.epoch_id), key.astype(np.uint32).view(np.int32).astype(np.int64), Q)
    published = (folded(made, everybody).reshape(2, -1) - product.groups(0)[:2]).view(np.int64).reshape(-1)[:D] % Q
    left = (published - np.sum([one.integers for one in everybody], axis=0)) % Q
    assert abs(left.std() / (Q / np.sqrt(12)) - 1) < 0.1  # uniform: nothing of the honest sum is left
    assert (np.abs(decrypt_sum(made, ask(made, [one.update for one in others]), others)) < 2100).all()


def test_shares_of_another_short_key_do_not_open(made: World) -> None:
    """The key's range check finds no lie that is as short as a key; what the key opens tells."""
    sent = send_kahe(made, "mallory", random_integers(D, 5, 1000))
    other = made.encrypt_kahe("mallory", sent.header.update_id, sent.integers)
    bad = Sent(sent.integers, sent.body | {"shares": other["shares"]}, sent.update)
    with expect_problem(COMBINE_REFUSED, "padding"):
        decrypt_sum(made, ask(made, [bad.update]), [bad])
    with pytest.MonkeyPatch.context() as off:
        off.setattr(kahe, "check_padding", lambda *_: None)
        left = (decrypt_sum(made, ask(made, [bad.update]), [bad]) - sent.integers) % Q
    assert abs(left.std() / (Q / np.sqrt(12)) - 1) < 0.1


def digests(released: dict[int, bytes]) -> dict[int, bytes]:
    return {part: hashlib.sha256(data).digest() for part, data in released.items()}


def test_a_lying_holder_is_named_and_the_sum_is_opened_without_it() -> None:
    """3-of-5, all five answer: every part is known to three, so two contradict the liar."""
    made = world(5, 3)
    sent = [send_kahe(made, f"client-{i}", random_integers(D, i, 1000)) for i in range(3)]
    request = ask(made, [one.update for one in sent])
    released = {holder: shares(made, holder, request, sent) for holder in range(5)}
    wanted = combine(made, {p: d for mine in released.values() for p, d in mine.items()}, sent)
    part = made.task.sharing.subshares_of(2)[0]
    lie = bytearray(released[2][part])
    lie[0] ^= 1  # one coefficient by one: the range check alone would let it pass
    released[2][part] = bytes(lie)
    resolution = choices(made.task.sharing, {holder: digests(mine) for holder, mine in released.items()})[0]
    assert resolution.suspects == {2}
    by_digest = {hashlib.sha256(data).digest(): data for mine in released.values() for data in mine.values()}
    chosen = {i: by_digest[digest] for i, digest in enumerate(resolution.digests)}
    np.testing.assert_array_equal(combine(made, chosen, sent), wanted)
    with expect_problem(COMBINE_REFUSED, "padding"):
        combine(made, chosen | {part: bytes(lie)}, sent)
    with pytest.MonkeyPatch.context() as off:
        off.setattr(kahe, "check_padding", lambda *_: None)
        published = combine(made, chosen | {part: bytes(lie)}, sent)
    assert np.abs(published - wanted).max() > 100  # what trusting the liar would have published


def test_a_client_that_seals_different_seeds_makes_an_honest_holder_a_suspect() -> None:
    """Shares are not verifiable: a contradiction says that somebody lied, and not always who.

    The sum is right all the same, from the holders that agree.
    """
    made = world(5, 3)
    others = [send_kahe(made, f"client-{i}", random_integers(D, i, 1000)) for i in range(2)]

    def framing(seeds: list[bytes], index: int) -> list[bytes]:
        return [bytes(32)] * len(seeds) if index == 4 else seeds

    part = explicit_subshare(made.task.sharing)
    assert 4 not in made.task.sharing.holders_of(part)  # holder 4 has seeds only: its envelope opens
    everybody = [*others, poisoned(made, "mallory", framing)]
    request = ask(made, [one.update for one in everybody])
    released = {holder: shares(made, holder, request, everybody) for holder in range(5)}
    resolution = choices(made.task.sharing, {holder: digests(mine) for holder, mine in released.items()})[0]
    assert resolution.suspects == {4}
    by_digest = {hashlib.sha256(data).digest(): data for mine in released.values() for data in mine.values()}
    opened = combine(made, {i: by_digest[digest] for i, digest in enumerate(resolution.digests)}, everybody)
    assert np.abs(opened - np.sum([one.integers for one in everybody], axis=0)).max() < 8 * 6.4 * np.sqrt(3)


def centred(values: np.ndarray) -> np.ndarray:
    values = values % Q
    return np.where(values > Q // 2, values - Q, values)


class SameKey(FixedWords):
    """A broken client: its first draw, the secret, is the same every time; the errors are fresh."""

    def __call__(self, count: int) -> np.ndarray:
        words = super().__call__(count)
        return FixedWords(b"reused")(count) if len(self.calls) == 1 else words


def residues_of(made: World, body: dict[str, bytes]) -> np.ndarray:
    layout = made.task.section("sum").layout
    assert layout is not None
    return unpack(body["b"], layout).reshape(-1)[:D].astype(np.int64)


def test_one_key_for_two_vectors_would_show_their_difference(made: World) -> None:
    """What a server would read without any holder: b - b' = (v - v') + (e - e')."""
    one, two = random_integers(D, 1, 1000), random_integers(D, 2, 1000)
    words = [SameKey(b"1"), SameKey(b"2")]
    bodies = [
        made.encrypt_kahe("client", bytes(16), vector, words=drawn)
        for vector, drawn in zip((one, two), words, strict=True)
    ]
    seen = centred(residues_of(made, bodies[0]) - residues_of(made, bodies[1]))
    errors = [drawn.errors(PROFILE, 1024)[:D] for drawn in words]
    np.testing.assert_array_equal(seen, (one - two) + (errors[0] - errors[1]))


def test_two_seals_of_one_vector_have_nothing_in_common(made: World) -> None:
    """The same client, update and vector: a client that has lost its sealed bytes makes a new key."""
    vector = random_integers(D, 1, 1000)
    sealer = KaheEncryptor(made.task, "client", threads=1)
    bodies: list[dict[str, bytes]] = [{}, {}]
    for body in bodies:
        sealer._encrypt(bytes(16), lambda start, stop: vector[start:stop], body.__setitem__)  # type: ignore[arg-type]
    difference = centred(residues_of(made, bodies[0]) - residues_of(made, bodies[1]))
    assert abs(difference.std() / (Q / np.sqrt(12)) - 1) < 0.1
    first, second = (boxes(made, body["shares"]) for body in bodies)
    assert first[0] != second[0]
    assert not set(first[1]) & set(second[1])


async def test_no_caller_can_pass_a_key_in(made: World, tmp_path: Path) -> None:
    """Nothing but the update's number, its integers and where bytes go; randomness is the operating system's."""
    assert list(inspect.signature(KaheEncryptor.encrypt).parameters) == ["self", "update_id", "source", "write"]
    assert list(inspect.signature(make_encryptor).parameters) == ["task", "client", "board", "cache"]
    sealer = await make_encryptor(made.task, "client", MemoryBoard(), tmp_path)
    assert sealer._words is secret_words
    assert not any(
        isinstance(value, np.ndarray) and value.size == PROFILE.degree for value in vars(sealer).values()
    )  # no secret outlives a call
    assert inspect.signature(KaheEncryptor).parameters["words"].default is secret_words


def test_the_explicit_part_completes_the_secret(made: World) -> None:
    """All parts of a fresh update sum to its secret modulo 2^32, and each alone looks uniform."""
    words = FixedWords(b"parts")
    sent = send_kahe(made, "client", random_integers(D, 1, 1000), words=words)
    seeds, last = words.seeds(3), explicit_subshare(made.task.sharing)
    info = envelope_info(made.task.epoch_id, "client", sent.header.update_id, "")
    explicit = np.frombuffer(AESGCM(seeds[last]).decrypt(NONCE, boxes(made, sent.body["shares"])[0], info), "<u4")
    total = explicit + expand_subshare(seeds[0], PROFILE.degree) + expand_subshare(seeds[1], PROFILE.degree)
    np.testing.assert_array_equal(total.view(np.int32), words.secret(PROFILE))
    counts = np.bincount(explicit >> 28, minlength=16)
    assert ((counts - 32) ** 2 / 32).sum() < 56.5  # 15 degrees of freedom, 10^-6
