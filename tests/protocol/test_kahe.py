"""The public half of `kahe`: profiles, layouts, what follows from seeds, and the range check of the opened key."""

from __future__ import annotations

from math import ceil, isqrt

import numpy as np
import pytest

from he_holder.hpke_key import HpkeKey
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.arithmetic.ntt_lanes import CommonProduct
from he_protocol.envelope import seal
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.kahe import (
    PROFILES,
    SEED_BYTES,
    WORD,
    Kahe,
    box_bytes,
    combined_key,
    common_key,
    envelope_info,
    expand_subshare,
    explicit_subshare,
    make,
)
from he_protocol.schemes.registry import load_scheme
from he_protocol.schemes.scheme import combine
from he_protocol.sharing import Sharing
from he_testing.problems import expect_problem
from tests.support.kahe import SECURE

EPOCH = bytes(range(40))
ALL = pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
LIMIT = int(8 * 6.4)


@pytest.mark.parametrize("profile", SECURE.values(), ids=list(SECURE))
def test_a_profile_is_what_the_design_says(profile):
    q = profile.modulus
    assert (profile.degree, profile.bits, profile.error_std, profile.security_bits, profile.cheapest_attack) == {
        "kahe-30": (2048, 30, 6.4, 260.0, "usvp"),
        "kahe-20": (1024, 20, 6.4, 194.8, "bdd"),
        "kahe-18": (1024, 18, 3.2, 195.1, "bdd"),
        "kahe-16": (1024, 16, 3.2, 220.8, "bdd"),
        "kahe-14": (512, 14, 6.4, 149.9, "bdd"),
    }[profile.name]
    assert all(q % d for d in range(2, isqrt(q) + 1))
    assert q % (2 * profile.degree) == 1
    assert q < 1 << profile.bits <= 2 * q
    assert profile.error_tail == 8.0
    assert load_scheme("kahe", profile.name) == make(profile) == Kahe(profile)


@ALL
def test_a_scheme_states_what_tasks_need(profile):
    scheme = Kahe(profile)
    assert not scheme.ceremony
    assert scheme.capacity == profile.modulus // 2
    assert scheme.error_std == profile.error_std
    scheme.check_openings(1 << 40, 1 << 20, 1 << 30)


@ALL
@pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (3, 2), (5, 3)])
def test_layouts(profile, holders, threshold):
    scheme, sharing, n = Kahe(profile), Sharing(holders, threshold), profile.degree
    for length, rows in ((1, 1), (n, 1), (n + 1, 2), (16 * n, 16), (16 * n + 1, 17)):
        b, shares = scheme.body(length, sharing)
        assert (b.name, b.role, shares.name, shares.role, shares.layout) == ("b", "sum", "shares", "key", None)
        assert b.layout.shape == (rows, 1, n)
        assert b.size == b.layout.size == rows * n * profile.bits // 8
        assert shares.size == 4 * n + 16 + holders * (1136 + 32 * len(sharing.subshares_of(0)))
        assert scheme.share_layout(length).size == 4 * n
    assert scheme.body(1 << 20, sharing)[0].size * 8 == (1 << 20) * profile.bits  # not a bit of padding


@pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (2, 2), (3, 2), (5, 3), (7, 4)])
def test_every_holder_has_an_envelope_of_the_same_size(holders, threshold):
    sharing = Sharing(holders, threshold)
    assert len({len(sharing.subshares_of(h)) for h in range(holders)}) == 1
    assert explicit_subshare(sharing) == sharing.subshares - 1
    seeds = bytes(SEED_BYTES * len(sharing.subshares_of(holders - 1)))
    assert len(seal(seeds, HpkeKey.generate().public, b"info")) == box_bytes(sharing)


def test_parts_are_the_keystream_as_uint32():
    seed = bytes(range(32))
    part = expand_subshare(seed, 512)
    assert (part.dtype, part.shape) == (np.uint32, (512,))
    assert part.tobytes() == expand_words(seed, 256).tobytes()
    part += np.uint32(1)  # callers may write


def test_an_envelope_is_bound_to_epoch_client_update_and_holder():
    good = (EPOCH, "phone-1", bytes(16), "holder-0")
    changed = [
        (EPOCH[::-1], *good[1:]),
        (EPOCH[:32] + (9).to_bytes(8, "little"), *good[1:]),
        (EPOCH, "phone-2", *good[2:]),
        (*good[:2], bytes(15) + b"\x01", "holder-0"),
        (*good[:3], "holder-1"),
        (*good[:3], ""),
        (EPOCH, "phone-1h", bytes(16), "older-0"),
    ]
    assert len({envelope_info(*fields) for fields in [good, *changed]}) == len(changed) + 1


def test_public_polynomials_follow_from_the_epoch():
    assert common_key(EPOCH) == derive_key("hushsum/kahe/common-polynomials/v1", EPOCH)
    assert common_key(EPOCH) != common_key(EPOCH[:-1] + b"\x28")


def split(key: np.ndarray, parts: int, seed: int = 3) -> list[np.ndarray]:
    """Parts modulo 2^32 that sum to `key`, as holders release them."""
    shape = (1, 1, key.size)
    parted = [np.random.default_rng(seed + i).integers(0, WORD, shape, dtype=np.uint64) for i in range(parts - 1)]
    last = (key.astype(object) - sum(p.astype(object) for p in parted)) % WORD
    return [*parted, np.asarray(last, dtype=np.uint64).reshape(shape)]


@ALL
@pytest.mark.parametrize("parts", [1, 3, 10, 126])
def test_the_opened_key_is_the_centred_sum_of_the_parts(profile, parts):
    most = int(8 * profile.error_std)
    key = np.random.default_rng(1).integers(-most * 5, most * 5 + 1, profile.degree)
    released = split(key, parts)
    kept = [part.copy() for part in released]
    np.testing.assert_array_equal(combined_key(profile, released, 5), key)
    for part, before in zip(released, kept, strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.parametrize("count", [1, 3, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_keys_beyond_what_honest_secrets_sum_to_are_refused(count, sign):
    """8 * 6.4 * count, whole coefficients."""
    profile = PROFILES["kahe-14"]
    key, most = np.zeros(profile.degree, dtype=np.int64), int(51.2 * count)
    assert most >= LIMIT * count
    key[17] = sign * most
    assert combined_key(profile, split(key, 3), count)[17] == sign * most
    key[17] = sign * (most + 1)
    with expect_problem(COMBINE_REFUSED, f"{count} updates is out of range"):
        combined_key(profile, split(key, 3), count)
    key[17] = -(1 << 31)  # whose absolute value 32 bits do not hold
    with expect_problem(COMBINE_REFUSED, f"up to {most}, got {1 << 31}"):
        combined_key(profile, split(key, 3), count)


def test_a_missing_or_doubled_part_is_out_of_range():
    profile = PROFILES["kahe-14"]
    released = split(np.zeros(profile.degree, dtype=np.int64), 3)
    for wrong in (released[:2], [*released, released[0]], [released[0], released[0], released[2]]):
        with expect_problem(COMBINE_REFUSED):
            combined_key(profile, wrong, 3)


@ALL
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_combine_removes_exactly_the_product_with_the_opened_key(profile, rows):
    """Values up to half of the modulus come back to the last unit; groups of 16 polynomials, whole or not."""
    n, q = profile.degree, profile.modulus
    rng = np.random.default_rng(rows)
    key = rng.integers(-50, 51, n)
    values = rng.integers(-(q // 2), q // 2 + 1, rows * n)
    values[:2] = q // 2, -(q // 2)
    values[rows * n - n + 1 :] = rng.integers(-50, 51, n - 1)  # may be padding: errors of two updates
    product = CommonProduct(common_key(EPOCH), key, q)
    groups = np.concatenate([product.groups(g) for g in range(ceil(rows / 16))])[:rows]
    total = ((groups.reshape(-1).astype(np.int64) + values) % q).astype(np.uint64).reshape(rows, 1, n)
    for length in (rows * n, rows * n - n + 1):
        opened = combine(Kahe(profile), total.copy(), split(key, 3), length, 2, EPOCH)
        assert opened.dtype == np.int64
        np.testing.assert_array_equal(opened, values[:length])
    other = combine(Kahe(profile), total.copy(), split(key, 3), rows * n, 2, EPOCH[:-1] + b"\x00")
    assert (other == values).mean() < 0.01
