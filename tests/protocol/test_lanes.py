"""Products with the public polynomials against their definition, evaluated without any fast transform."""

from __future__ import annotations

import numpy as np
import pytest

from he_protocol.arithmetic import ntt, ntt_lanes
from he_protocol.arithmetic.ntt_lanes import LANES, MAX_PRIME, SPARE, CommonProduct
from he_protocol.schemes.kahe import PROFILES
from tests.support.kahe import public_lanes

KEY = bytes(range(32))
RINGS = [(profile.degree, profile.modulus) for profile in PROFILES.values()]
SMALL = [(64, 257), (64, 12289), (128, 7681), (64, 1073692673)]
"""All primes are 1 modulo 2N; the last is as large as lanes can bear."""
EDGE = 51
"""int(8 * 6.4): where profiles cut the tail."""


def short(degree: int, seed: int = 1, bound: int = EDGE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-bound, bound + 1, degree)


def public_values(degree: int, modulus: int, group: int) -> np.ndarray:
    return public_lanes(KEY, degree, modulus, group).astype(np.int64)


def exponents(degree: int) -> np.ndarray:
    """SEAL's order: value k is at the root to the power 2*bitreverse(k) + 1."""
    bits = degree.bit_length() - 1
    return np.array([2 * int(f"{k:0{bits}b}"[::-1], 2) + 1 for k in range(degree)])


def powers(degree: int, modulus: int) -> np.ndarray:
    out, root = [1], ntt.minimal_root(modulus, degree)
    for _ in range(2 * degree - 1):
        out.append(out[-1] * root % modulus)
    return np.array(out, dtype=np.int64)


def values_of(s: np.ndarray, modulus: int) -> np.ndarray:
    """A polynomial at all odd powers of the root; digit by digit, so that every sum is below 2^62."""
    n = s.size
    matrix = powers(n, modulus)[exponents(n)[:, None] * np.arange(n)[None, :] % (2 * n)]
    high, low = s // 1024, s % 1024
    return (matrix @ high % modulus * 1024 + matrix @ low) % modulus


def coefficient(values: np.ndarray, i: int, modulus: int) -> np.ndarray:
    """Coefficient i of the polynomials with these values, shape (N, 16): sum of value * root^(-i*e) / N."""
    n = len(values)
    back = powers(n, modulus)[-i * exponents(n) % (2 * n)]
    return (values * back[:, None] % modulus).sum(axis=0) % modulus * pow(n, -1, modulus) % modulus


@pytest.mark.parametrize("group", [0, 3])
@pytest.mark.parametrize(("degree", "modulus"), RINGS)
def test_coefficients_at_full_degree(degree, modulus, group):
    s = short(degree)
    got = CommonProduct(KEY, s, modulus).groups(group)
    assert got.shape == (LANES, degree)
    assert got.dtype == np.uint32
    assert (got < modulus).all()
    values = public_values(degree, modulus, group) * values_of(s, modulus)[:, None] % modulus
    for i in (0, 1, degree // 2 - 1, degree // 2, degree - 2, degree - 1):
        assert got[:, i].tolist() == coefficient(values, i, modulus).tolist()


@pytest.mark.parametrize("group", [0, 1, 3])
@pytest.mark.parametrize(("degree", "modulus"), SMALL)
def test_every_lane_is_the_schoolbook_product(degree, modulus, group):
    """In plain integers: a_j by its definition, then sum of a_i s_k X^(i+k) with X^N = -1."""
    s = short(degree, seed=group)
    got = CommonProduct(KEY, s, modulus).groups(group)
    a = np.stack([coefficient(public_values(degree, modulus, group), i, modulus) for i in range(degree)])
    for lane in range(LANES):
        wanted = [0] * degree
        for i, x in enumerate(a[:, lane].tolist()):
            for k, y in enumerate(s.tolist()):
                wanted[(i + k) % degree] += -x * y if i + k >= degree else x * y
        assert got[lane].tolist() == [w % modulus for w in wanted]


EXTREMES = {
    "zero": lambda n: np.zeros(n, dtype=np.int64),
    "all high": lambda n: np.full(n, EDGE),
    "all low": lambda n: np.full(n, -EDGE),
    "alternating": lambda n: EDGE * (-1) ** np.arange(n),
    "one coefficient": lambda n: -EDGE * (np.arange(n) == n - 1),
    "a sum of a million": lambda n: short(n, bound=EDGE * 10**6),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize(("degree", "modulus"), [RINGS[0], RINGS[2], SMALL[3]])
def test_extreme_secrets(degree, modulus, name):
    s = EXTREMES[name](degree)
    got = CommonProduct(KEY, s, modulus).groups(0)
    values = public_values(degree, modulus, 0) * values_of(s, modulus)[:, None] % modulus
    for i in (0, 1, degree - 1):
        assert got[:, i].tolist() == coefficient(values, i, modulus).tolist()


@pytest.mark.parametrize(("degree", "modulus"), SMALL)
def test_one_gives_the_public_polynomials_themselves_and_x_rotates_them(degree, modulus):
    one, x = np.zeros((2, degree), dtype=np.int64)
    one[0] = x[1] = 1
    a = CommonProduct(KEY, one, modulus).groups(2)
    assert a[:, 5].tolist() == coefficient(public_values(degree, modulus, 2), 5, modulus).tolist()
    rotated = np.roll(a, 1, axis=1)
    rotated[:, 0] = (modulus - a[:, -1].astype(np.int64)) % modulus
    np.testing.assert_array_equal(CommonProduct(KEY, x, modulus).groups(2), rotated)


def test_groups_and_keys_give_other_polynomials():
    """Keys that add up need the same `a` everywhere; two chunks under one `a` would show their difference."""
    degree, modulus = RINGS[2]
    one = np.zeros(degree, dtype=np.int64)
    one[0] = 1
    first, second = (CommonProduct(KEY, one, modulus).groups(n) for n in (0, 1))
    other = CommonProduct(KEY[::-1], one, modulus).groups(0)
    rows = np.concatenate([first, second, other])
    assert len({row.tobytes() for row in rows}) == 3 * LANES
    assert (first == second).mean() < 0.01
    counts = np.histogram(rows, bins=16, range=(0, modulus))[0]
    mean = rows.size / 16
    assert ((counts - mean) ** 2 / mean).sum() < 56.5  # 15 degrees of freedom, 10^-6


def test_keys_add_up():
    """a*s + a*s' = a*(s + s'): the whole point of public polynomials that all clients share."""
    degree, modulus = RINGS[0]
    s, t = short(degree, 1), short(degree, 2)
    parts = [CommonProduct(KEY, key, modulus).groups(1) for key in (s, t, s + t)]
    np.testing.assert_array_equal((parts[0] + parts[1]) % np.uint64(modulus), parts[2])


def test_a_word_that_would_favour_small_residues_is_replaced(monkeypatch):
    """With words at the limit in three places: the spare words stand there, in order; the limit itself is out."""
    degree, modulus = SMALL[3]
    limit, size = (1 << 32) // modulus * modulus, degree * LANES // 2
    words = np.zeros(size + SPARE, dtype=np.uint64)
    flat = words[:size].view("<u4")
    flat[[3, 40, degree * LANES - 1]], flat[41] = (limit, 0xFFFFFFFF, limit + 1), limit - 1
    words[size : size + 3] = (1 << 63) + 5, modulus - 1, 7
    monkeypatch.setattr(ntt_lanes, "expand_words", lambda key, count, block: words.copy())
    one = np.zeros(degree, dtype=np.int64)
    one[0] = 1
    values = flat.astype(np.int64)
    values[[3, 40, degree * LANES - 1]] = ((1 << 63) + 5) % modulus, modulus - 1, 7
    got = CommonProduct(KEY, one, modulus).groups(0)
    for i in (0, 1, degree - 1):
        wanted = coefficient(values.reshape(degree, LANES) % modulus, i, modulus)
        assert got[:, i].tolist() == wanted.tolist()


def test_too_few_spare_words_are_an_error(monkeypatch):
    degree, modulus = SMALL[0]
    words = np.full(degree * LANES // 2 + SPARE, (1 << 64) - 1, dtype=np.uint64)
    monkeypatch.setattr(ntt_lanes, "expand_words", lambda key, count, block: words)
    with pytest.raises(RuntimeError, match="not enough"):
        CommonProduct(KEY, short(degree), modulus).groups(0)


@pytest.mark.parametrize("modulus", [MAX_PRIME, MAX_PRIME + 12289, 1125899905351681])
def test_moduli_that_would_overflow_a_lane_are_refused(modulus):
    with pytest.raises(ValueError, match="below 2\\^30"):
        CommonProduct(KEY, short(64), modulus)


def test_every_stage_stays_below_2q_on_the_largest_inputs():
    """Values sit in 32 bits without a spare one: 4q must stay below 2^32, and lazy values below 2q."""
    degree, modulus = RINGS[0]
    q, q32 = modulus, np.uint32(modulus)
    assert 4 * q < 1 << 32
    product = CommonProduct(KEY, short(degree), modulus)
    for start in (0xFFFFFFFF, 2 * q - 1, 0, q):
        work = np.full((degree, LANES), start, dtype=np.uint32)
        work[::2] = 0xFFFFFFFF
        values = (work.astype(object) * product._factors[:, :1].astype(object) % q).astype(np.int64)
        ntt_lanes._multiply(work.reshape(-1), product._factors, product._roots, q32)
        assert (work < 2 * q).all()
        rows = np.empty((LANES, degree), dtype=np.uint32)
        ntt_lanes._rows(work, q32, rows)
        assert (rows < q).all()
        for i in (0, 1, degree - 1):  # the factor 1/N is not the transform's business
            assert (rows[:, i].astype(np.int64) == coefficient(values, i, q) * degree % q).all()
