"""The transform at the ring degree in use, its roots, and its product at the edges of the range."""

from __future__ import annotations

import numpy as np
import pytest

from he_protocol.arithmetic import ntt
from he_protocol.schemes.ckks import PROFILES

P = PROFILES["ckks-8192"]


def is_prime(n: int) -> bool:
    """Miller-Rabin with the bases that decide every n < 3.3e24 (Sorenson and Webster 2015)."""
    if n < 2 or any(n % p == 0 and n != p for p in (2, 3, 5, 7, 11, 13)):
        return False
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        x = pow(base, odd, n)
        if n == base or x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


LARGEST = next(p for p in range((1 << 50) - 1, 0, -1) if is_prime(p))


@pytest.mark.parametrize("p", [LARGEST, *P.moduli, 1073692673, 12289, 3, 2])
def test_product_is_exact_at_the_edges(p):
    over = 1.0 / float(np.float64(p))
    root = int(p**0.5)
    edges = {0, 1, 2, p // 2, p // 2 + 1, p - 2, p - 1, root, root + 1, p // 3, (1 << 49) % p, (1 << 25) % p}
    edges = sorted(e for e in edges if 0 <= e < p)
    for a in edges:
        for b in edges:
            assert int(ntt.product(np.uint64(a), np.uint64(b), np.uint64(p), over)) == a * b % p


UNEVEN = next(p for p in range(10**15, 0, -1) if is_prime(p))
"""Its inverse is rounded down as a double, so quotients come out one too small as often as too large."""


@pytest.mark.parametrize("p", [LARGEST, UNEVEN, *P.moduli])
def test_product_is_exact_next_to_multiples_of_the_prime(p):
    """Where a*b/p is nearly an integer, the floating-point quotient is most likely off by one, to either side."""
    over = 1.0 / p
    low = high = 0
    for a in map(int, np.random.default_rng(1).integers(1, p, 1000)):
        for rest in (0, 1, p - 1, p - 2):
            b = rest * pow(a, -1, p) % p
            assert int(ntt.product(np.uint64(a), np.uint64(b), np.uint64(p), over)) == rest
            quotient = int(float(a) * float(b) * over)
            low, high = low + (quotient < a * b // p), high + (quotient > a * b // p)
    assert high > 0
    assert low > 0 or p != UNEVEN


@pytest.mark.parametrize(("p", "degree"), [(12289, 512), (12289, 8), (97, 16), (17, 8), (1073692673, 16)])
def test_the_root_is_primitive_and_minimal(p, degree):
    root = ntt.minimal_root(p, degree)
    assert pow(root, degree, p) == p - 1
    if p < 20000:
        assert root == next(r for r in range(2, p) if pow(r, degree, p) == p - 1)
    else:
        assert root == min(pow(root, k, p) for k in range(1, 2 * degree, 2))


@pytest.mark.parametrize("p", P.moduli)
def test_no_smaller_root_exists_at_full_degree(p):
    assert is_prime(p)
    root = ntt.minimal_root(p, P.degree)
    assert pow(root, P.degree, p) == p - 1
    power = np.array([[[root] + [0] * 7]], dtype=np.uint64)
    square, smallest = root * root % p, root
    value = root
    for _ in range(P.degree - 1):
        value = value * square % p
        smallest = min(smallest, value)
    assert smallest == root == int(power[0, 0, 0])


@pytest.mark.parametrize(("p", "degree"), [((1 << 50) + 27, 8), (1 << 50, 8), (12289, 8192), (13, 8)])
def test_other_moduli_are_refused(p, degree):
    with pytest.raises(ValueError, match="modulus must be"):
        ntt.minimal_root(p, degree)


def test_forward_at_full_degree_is_evaluation_at_odd_powers_in_bit_reversed_order():
    """Spot check: a few outputs of the real ring against Horner's rule in plain integers."""
    rng = np.random.default_rng(2)
    row = np.array([[rng.integers(0, p, P.degree, dtype=np.uint64) for p in P.moduli]])
    out = row.copy()
    ntt.forward(out, P.moduli)
    for limb, p in enumerate(P.moduli):
        root = ntt.minimal_root(p, P.degree)
        for place in (0, 1, 2, 4095, 4096, 8190, 8191):
            reversed_place = int(f"{place:013b}"[::-1], 2)
            x, value = pow(root, 2 * reversed_place + 1, p), 0
            for c in reversed(row[0, limb].tolist()):
                value = (value * x + c) % p
            assert int(out[0, limb, place]) == value
    ntt.inverse(out, P.moduli)
    np.testing.assert_array_equal(out, row)


def test_a_product_at_full_degree_wraps_with_a_minus_sign():
    """X^8191 * X = -1, and a sparse product equals its schoolbook sum."""
    rng = np.random.default_rng(3)
    places = rng.integers(0, P.degree, 12)
    sparse = np.zeros((1, 1, P.degree), dtype=np.uint64)
    p = P.moduli[0]
    sparse[0, 0, places] = rng.integers(0, p, 12, dtype=np.uint64)
    dense = rng.integers(0, p, (1, 1, P.degree), dtype=np.uint64)
    expected = [0] * P.degree
    for i in map(int, set(places)):
        a = int(sparse[0, 0, i])
        for j, b in enumerate(dense[0, 0].tolist()):
            k, sign = (i + j) % P.degree, -1 if i + j >= P.degree else 1
            expected[k] = (expected[k] + sign * a * b) % p
    left, right = sparse.copy(), dense.copy()
    ntt.forward(left, (p,))
    ntt.forward(right, (p,))
    got = ntt.multiply(left, right, (p,))
    ntt.inverse(got, (p,))
    assert got[0, 0].tolist() == expected


def test_one_right_factor_serves_every_polynomial():
    left = np.arange(32, dtype=np.uint64).reshape(2, 2, 8)
    right = np.arange(16, dtype=np.uint64).reshape(1, 2, 8)
    got = ntt.multiply(left, right, (97, 113))
    np.testing.assert_array_equal(got, left * right % np.array([97, 113], dtype=np.uint64)[None, :, None])


def test_lift_maps_signed_coefficients_to_every_limb():
    signed = np.array([[0, 1, -1, 5, -97, 200, -113, 3]], dtype=np.int64)
    lifted = ntt.lift(signed, (97, 113))
    assert lifted.dtype == np.uint64
    assert lifted[0].tolist() == [[c % p for c in signed[0].tolist()] for p in (97, 113)]
