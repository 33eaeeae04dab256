"""pack, unpack, fold, check and add against plain big integers, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_protocol.arithmetic.residues import ResidueLayout, add, check, fold, pack, pack_into, unpack
from he_protocol.errors import ProblemError

WIDTHS = (1, 7, 14, 20, 30, 32, 50, 62)
"""Few, because kernels are compiled for each."""


@st.composite
def layouts(draw) -> ResidueLayout:
    """Widths at either end and those in use, with moduli that need at most so many bits."""
    bits = draw(st.sampled_from(WIDTHS))
    moduli = draw(st.lists(st.integers(1, 1 << bits), min_size=1, max_size=3))
    return ResidueLayout(draw(st.integers(1, 3)), tuple(moduli), 64 * draw(st.integers(1, 3)), bits)


@st.composite
def vectors(draw, count: int = 1):
    layout = draw(layouts())
    wide = np.array(layout.moduli, dtype=np.uint64)[None, :, None]
    arrays = []
    for _ in range(count):
        if draw(st.booleans()):
            seed = draw(st.integers(0, 2**32))
            arrays.append(np.random.default_rng(seed).integers(0, wide, layout.shape, dtype=np.uint64))
        else:
            arrays.append(np.broadcast_to(wide - np.uint64(1), layout.shape).copy())
    return layout, *arrays


def plain_pack(values: list[int], bits: int) -> bytes:
    number = sum(v << (i * bits) for i, v in enumerate(values))
    return number.to_bytes(len(values) * bits // 8, "little")


def plain_unpack(data: bytes, bits: int) -> list[int]:
    number = int.from_bytes(data, "little")
    return [number >> (i * bits) & ((1 << bits) - 1) for i in range(len(data) * 8 // bits)]


def primes_of(layout: ResidueLayout, first_row: int, rows: int) -> list[int]:
    return [layout.moduli[(first_row + r) % len(layout.moduli)] for r in range(rows) for _ in range(layout.degree)]


@given(vectors())
def test_pack_is_the_little_endian_number(case):
    layout, values = case
    packed = pack(values, layout)
    assert packed == plain_pack(values.reshape(-1).tolist(), layout.bits)
    assert len(packed) == layout.size
    np.testing.assert_array_equal(unpack(packed, layout), values)
    if layout.bits <= 32:
        words = np.empty(layout.size // 8, dtype=np.uint64)
        pack_into(words, values.astype(np.uint32).reshape(-1), layout)
        assert words.tobytes() == packed


@given(layouts(), st.data())
def test_unpack_accepts_exactly_the_residues_below_their_modulus(layout, data):
    """Any numbers: either every one is below its modulus and is added, or nothing is."""
    rows, first = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 5))
    primes = primes_of(layout, first, rows)
    seed, bad = data.draw(st.integers(0, 2**32)), data.draw(st.integers(0, 2))
    numbers = np.random.default_rng(seed).integers(0, np.array(primes, dtype=np.uint64), dtype=np.uint64).tolist()
    for _ in range(bad if rows else 0):
        numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(st.integers(0, (1 << layout.bits) - 1))
    packed = plain_pack(numbers, layout.bits)
    assert plain_unpack(packed, layout.bits) == numbers
    start = np.random.default_rng(seed + 1).integers(0, np.array(primes, dtype=np.uint64), dtype=np.uint64)
    total = start.reshape(rows, layout.degree).copy()
    if all(n < p for n, p in zip(numbers, primes, strict=True)):
        check(packed, layout, first)
        fold(total, packed, layout, first)
        wanted = [(a + b) % p for a, b, p in zip(start.tolist(), numbers, primes, strict=True)]
        assert total.reshape(-1).tolist() == wanted
    else:
        for read in (lambda: check(packed, layout, first), lambda: fold(total, packed, layout, first)):
            with pytest.raises(ProblemError, match=r"\[residue-out-of-range\]$"):
                read()
        np.testing.assert_array_equal(total.reshape(-1), start)


@given(vectors(2), st.data())
def test_fold_adds_modulo_each_rows_prime(case, data):
    """From any first row, in any number of pieces."""
    layout, start, term = case
    primes = primes_of(layout, 0, layout.rows)
    wanted = [
        (a + b) % p for a, b, p in zip(start.reshape(-1).tolist(), term.reshape(-1).tolist(), primes, strict=True)
    ]
    packed = memoryview(pack(term, layout))
    rows = start.reshape(layout.rows, layout.degree).copy()
    cut = data.draw(st.integers(0, layout.rows))
    fold(rows[:cut], packed[: cut * layout.row_bytes], layout)
    fold(rows[cut:], packed[cut * layout.row_bytes :], layout, cut)
    assert rows.reshape(-1).tolist() == wanted
    total = start.copy()
    add(total, term, layout)
    assert total.reshape(-1).tolist() == wanted


@given(layouts(), st.binary(max_size=200))
def test_only_whole_rows_are_read(layout, data):
    if len(data) % layout.row_bytes:
        with pytest.raises(ProblemError, match=r"\[wrong-size\]$"):
            unpack(data, layout)
        with pytest.raises(ProblemError, match=r"\[wrong-size\]$"):
            check(data, layout)
