"""The public half of `ckks`: layouts, budgets, the common polynomial, decoding and combining."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import log2, prod

import numpy as np
import pytest

from he_protocol.arithmetic import ntt
from he_protocol.arithmetic.keystream import derive_key, expand_words
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED
from he_protocol.schemes.ckks import PROFILES, Ckks, common_polynomial, decode, make
from he_protocol.schemes.scheme import combine
from he_protocol.sharing import Sharing
from he_testing.problems import expect_problem

P = PROFILES["ckks-8192"]
TINY = replace(P, name="tiny", degree=64)  # the same primes are 1 modulo 128 too
Q = prod(P.data_moduli)


def encode(slots: list[float], profile=TINY) -> np.ndarray:
    """CKKS encoding by its definition: the real polynomial with these values at zeta^(3^j); shape (1, 3, N)."""
    n = profile.degree
    slots = slots + [0] * (n // 2 - len(slots))
    zeta = np.exp(1j * np.pi / n)
    places = [pow(3, j, 2 * n) for j in range(n // 2)]
    reals = [2 / n * sum(v * (zeta ** (-e * k)).real for v, e in zip(slots, places, strict=True)) for k in range(n)]
    coefficients = [round(r * 2**40) << (profile.scale_bits - 40) for r in reals]
    out = np.array([[[c % q for c in coefficients] for q in profile.data_moduli]], dtype=np.uint64)
    ntt.forward(out, profile.data_moduli)
    return out


def test_the_profile_is_what_the_design_says():
    assert all(q < 1 << 50 and q % (2 * P.degree) == 1 for q in P.moduli)
    assert len(set(P.moduli)) == 4
    assert sum(log2(q) for q in P.moduli) < 214
    assert (P.slots, P.scale) == (4096, 2.0**110)
    assert make(P) == Ckks(P)


def test_capacity_leaves_room_below_half_of_the_modulus():
    capacity = Ckks(P).capacity
    assert capacity == 1 << 37
    assert 2 * (capacity << P.scale_bits) < Q / 2 < Q


@pytest.mark.parametrize(("length", "chunks"), [(1, 1), (4096, 1), (4097, 2), (1 << 20, 256)])
def test_layouts(length, chunks):
    scheme = Ckks(P)
    c0, c1 = scheme.body(length, Sharing(3, 2))
    assert (c0.name, c0.role, c1.name, c1.role) == ("c0", "sum", "c1", "key")
    assert c0.layout == c1.layout == scheme.share_layout(length)
    assert c0.layout.shape == (chunks, 3, 8192)
    assert c0.size == c0.layout.size == chunks * 3 * 8192 * 50 // 8
    assert scheme.key_layout().shape == (1, 4, 8192)


def test_the_flooding_budget():
    """N * openings * chunks * 8*37*sqrt(n), plus 40 bits of statistical distance, within B = 84 bits."""
    scheme = Ckks(P)
    error = 8 * 37 * 10
    openings = int(2.0 ** (84 - 39) / (8192 * error))
    scheme.check_openings(openings, 100, 4096)
    with expect_problem(BAD_PLAN, "at most 84 bits, got 85"):
        scheme.check_openings(openings + 1, 100, 4096)
    with expect_problem(BAD_PLAN, "flooding"):
        scheme.check_openings(openings, 101, 4096)
    with expect_problem(BAD_PLAN, "flooding"):
        scheme.check_openings(openings, 100, 4097)


EPOCH = hashlib.sha256(b"task").digest() + (3).to_bytes(8, "little")


def test_the_common_polynomial_is_the_reduced_keystream():
    a = common_polynomial(P, EPOCH)
    assert a.shape == (1, 4, 8192)
    stream = expand_words(derive_key("hushsum/ckks/common-polynomial/v1", EPOCH), 2 * 4 * 8192).tobytes()
    for limb, q in enumerate(P.moduli):
        for i in (0, 1, 4095, 8191):
            at = 16 * (limb * 8192 + i)
            assert int(a[0, limb, i]) == int.from_bytes(stream[at : at + 16], "little") % q


def test_the_common_polynomial_differs_by_task_and_epoch():
    """One `a` for two epochs would let shares of one open ciphertexts of the other's sum."""
    first = common_polynomial(TINY, EPOCH)
    assert (common_polynomial(TINY, bytes(EPOCH)) == first).all()
    for place in (0, 31, 32, 39):
        other = bytearray(EPOCH)
        other[place] ^= 1
        assert (common_polynomial(TINY, bytes(other)) != first).mean() > 0.99


def test_decode_is_evaluation_of_the_centred_polynomial():
    """Against the definition in big integers, on arbitrary polynomials, also negative and large ones."""
    rng = np.random.default_rng(5)
    n = TINY.degree
    half = Q // 2
    rows = [
        [int(x) << 90 for x in rng.integers(-(2**58), 2**58, n)],
        [0] * n,
        [half] * n,
        [-half] * n,
        [-1, 1] * (n // 2),
    ]
    rows.append(
        [-(TINY.data_moduli[0]), TINY.data_moduli[0], *([-(TINY.data_moduli[0] * TINY.data_moduli[1])] * (n - 2))]
    )
    residues = np.array([[[c % q for c in row] for q in TINY.data_moduli] for row in rows], dtype=np.uint64)
    ntt.forward(residues, TINY.data_moduli)
    got = decode(residues, TINY).reshape(len(rows), -1)
    zeta = np.exp(1j * np.pi / n)
    for row, slots in zip(rows, got, strict=True):
        largest = max(map(abs, row)) / TINY.scale
        for j, slot in enumerate(slots):
            exact = sum(c / TINY.scale * zeta ** (pow(3, j, 2 * n) * k % (2 * n)) for k, c in enumerate(row)).real
            assert abs(slot - exact) <= 1e-12 * n * largest


def test_decode_keeps_small_negative_coefficients_exact():
    """-1 is Q-1: as a double before centring it would drown in 2^97."""
    row = np.array([[[q - 1] + [0] * 63 for q in TINY.data_moduli]], dtype=np.uint64)
    ntt.forward(row, TINY.data_moduli)
    before = row.copy()
    np.testing.assert_allclose(decode(row, TINY), -1 / TINY.scale, rtol=1e-14)
    np.testing.assert_array_equal(row, before)


VALUES = [0, 1, -1, 5, -1000, 123456, -7, 2**30]


def test_combine_adds_released_parts_and_rounds():
    scheme = Ckks(TINY)
    total = encode(VALUES)
    rng = np.random.default_rng(6)
    q = np.array(TINY.data_moduli, dtype=np.uint64)[None, :, None]
    masks = [rng.integers(0, q, total.shape, dtype=np.uint64) for _ in range(3)]
    hidden = (total + sum(q - m for m in masks)) % q
    kept = hidden.copy()
    assert combine(scheme, hidden, masks, 8, 3, EPOCH).tolist() == VALUES
    assert combine(scheme, hidden, masks, 5, 3, EPOCH).tolist() == VALUES[:5]
    np.testing.assert_array_equal(hidden, kept)
    for wrong in (masks[:2], [*masks, masks[0]], [masks[0], masks[1], masks[1]]):
        with expect_problem(COMBINE_REFUSED):
            combine(scheme, hidden, wrong, 8, 3, EPOCH)


@pytest.mark.parametrize(("off", "good"), [(0.0, True), (0.2, True), (0.3, False), (0.5, False), (-0.3, False)])
def test_slots_between_integers_are_refused(off, good):
    """A wrong share moves slots anywhere: rounding it away would publish noise as a model."""
    total = encode([v + (off if i == 3 else 0) for i, v in enumerate(VALUES)])
    if good:
        assert combine(Ckks(TINY), total, [], 8, 1, EPOCH).tolist() == VALUES
    else:
        with expect_problem(COMBINE_REFUSED, "integers"):
            combine(Ckks(TINY), total, [], 8, 1, EPOCH)


def test_slots_beyond_the_length_are_not_opened_but_are_integers_too():
    """TenSEAL repeats the values there. A wrong share shows in all slots, however few integers there are."""
    assert combine(Ckks(TINY), encode([*VALUES[:7], 3]), [], 7, 1, EPOCH).tolist() == VALUES[:7]
    with expect_problem(COMBINE_REFUSED, "not integers"):
        combine(Ckks(TINY), encode([*VALUES[:7], 0.5]), [], 7, 1, EPOCH)


def test_sums_beyond_the_capacity_are_refused():
    capacity = Ckks(TINY).capacity
    assert combine(Ckks(TINY), encode([0] * 7 + [capacity]), [], 8, 1, EPOCH)[7] == capacity
    for value in (capacity + 1, -capacity - 1):
        with expect_problem(COMBINE_REFUSED):
            combine(Ckks(TINY), encode([0] * 7 + [value]), [], 8, 1, EPOCH)
