"""The transform against its definition and against schoolbook multiplication, in plain integers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from he_protocol.arithmetic import ntt

PRIMES = (12289, 1073692673, 1125899905351681, 1125899905744897, 97, 65537)
"""All are 1 modulo 32."""


@st.composite
def rings(draw) -> tuple[int, int]:
    return draw(st.sampled_from(PRIMES)), 2 ** draw(st.integers(1, 4))


@st.composite
def polynomials(draw, count: int):
    p, degree = draw(rings())
    values = st.one_of(st.integers(0, p - 1), st.sampled_from((0, 1, p - 1)))
    return p, [draw(st.lists(values, min_size=degree, max_size=degree)) for _ in range(count)]


def array(*rows: list[int]) -> np.ndarray:
    return np.array([[row] for row in rows], dtype=np.uint64)


def evaluate(row: list[int], x: int, p: int) -> int:
    return sum(c * pow(x, k, p) for k, c in enumerate(row)) % p


@given(polynomials(2))
def test_forward_evaluates_at_the_odd_powers_and_inverse_undoes_it(case):
    p, rows = case
    degree = len(rows[0])
    bits = degree.bit_length() - 1
    got = array(*rows)
    ntt.forward(got, (p,))
    root = ntt.minimal_root(p, degree)
    for row, out in zip(rows, got[:, 0].tolist(), strict=True):
        powers = [2 * int(f"{i:0{bits}b}"[::-1], 2) + 1 for i in range(degree)]
        assert out == [evaluate(row, pow(root, e, p), p) for e in powers]
    ntt.inverse(got, (p,))
    np.testing.assert_array_equal(got, array(*rows))


@given(polynomials(2))
def test_pointwise_products_are_negacyclic_products(case):
    p, (a, b) = case
    degree = len(a)
    wanted = [0] * degree
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            sign = -1 if i + j >= degree else 1
            wanted[(i + j) % degree] = (wanted[(i + j) % degree] + sign * x * y) % p
    left, right = array(a), array(b)
    ntt.forward(left, (p,))
    ntt.forward(right, (p,))
    got = ntt.multiply(left, right, (p,))
    ntt.inverse(got, (p,))
    assert got[0, 0].tolist() == wanted


@given(st.integers(2, (1 << 50) - 1), st.data())
def test_product_is_the_product_for_any_modulus_in_range(p, data):
    edge = st.integers(max(0, p - 4), p - 1)
    a, b = (data.draw(st.one_of(st.integers(0, p - 1), edge)) for _ in range(2))
    assert int(ntt.product(np.uint64(a), np.uint64(b), np.uint64(p), 1.0 / p)) == a * b % p


@given(st.lists(st.integers(-(2**62), 2**62), min_size=4, max_size=4))
def test_lift_is_the_mathematical_remainder(row):
    lifted = ntt.lift(np.array([row], dtype=np.int64), PRIMES)
    assert lifted[0].tolist() == [[c % p for c in row] for p in PRIMES]
