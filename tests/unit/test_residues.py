"""Packing and modular sums: sizes, ranges, and that a refusal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from he_protocol.problems import RESIDUE_RANGE, WRONG_SIZE
from he_protocol.residues import ResidueLayout, add, check, fold, pack, row_moduli, unpack

from .refusals import refused

LAYOUT = ResidueLayout(polynomials=2, moduli=(97, 113), degree=8, bits=7)


def ramp(layout: ResidueLayout = LAYOUT) -> np.ndarray:
    moduli = np.array(layout.moduli, dtype=np.uint64)[None, :, None]
    return (np.arange(layout.rows * layout.degree, dtype=np.uint64).reshape(layout.shape) * np.uint64(31)) % moduli


def test_a_layout_states_its_shape_and_sizes():
    assert LAYOUT.shape == (2, 2, 8)
    assert (LAYOUT.rows, LAYOUT.row_bytes, LAYOUT.size) == (4, 7, 28)
    assert LAYOUT.zeros().shape == LAYOUT.shape
    assert LAYOUT.zeros().dtype == np.uint64


def test_packing_is_little_endian_without_padding():
    layout = ResidueLayout(1, (4093,), 8, 12)
    values = np.array([[[0xABC, 0x123, 0, 0, 0, 0, 0, 0xFEF]]], dtype=np.uint64)
    assert pack(values, layout).hex() == "bc3a12" + "000000" * 2 + "00f0fe"


def test_unpack_undoes_pack_also_for_parts_of_a_vector():
    packed = pack(ramp(), LAYOUT)
    assert len(packed) == LAYOUT.size
    np.testing.assert_array_equal(unpack(packed, LAYOUT), ramp())
    np.testing.assert_array_equal(unpack(memoryview(packed)[:14], LAYOUT), ramp()[:1])
    np.testing.assert_array_equal(unpack(packed[:7], LAYOUT), ramp()[0, :1])  # a lone row keeps two dimensions
    assert unpack(b"", LAYOUT).shape == (0, 2, 8)


@pytest.mark.parametrize("first_row", range(4))
def test_first_row_picks_the_prime(first_row):
    np.testing.assert_array_equal(row_moduli(LAYOUT, first_row, 3), [(97, 113)[(first_row + i) % 2] for i in range(3)])
    row = pack(np.full(8, 100, dtype=np.uint64), LAYOUT)
    rows = np.full((1, 8), 90, dtype=np.uint64)
    if first_row % 2:
        fold(rows, row, LAYOUT, first_row)
        assert (rows == (190 - 113)).all()
        check(row, LAYOUT, first_row)
    else:
        with refused(RESIDUE_RANGE, f"residue 0 of row {first_row}"):
            fold(rows, row, LAYOUT, first_row)
        with refused(RESIDUE_RANGE):
            check(row, LAYOUT, first_row)


@pytest.mark.parametrize("place", [0, 7, 8, 15, 31])
def test_a_residue_at_its_modulus_is_refused_and_changes_nothing(place):
    """A residue >= p would survive one subtraction and poison every later sum."""
    values = np.zeros(32, dtype=np.uint64)
    values[place] = LAYOUT.moduli[place // 8 % 2]
    packed = pack(values, LAYOUT)
    rows = np.full((4, 8), 5, dtype=np.uint64)
    with refused(RESIDUE_RANGE, f"residue {place % 8} of row {place // 8}"):
        fold(rows, packed, LAYOUT)
    assert (rows == 5).all()
    with refused(RESIDUE_RANGE):
        unpack(packed, LAYOUT)
    values[place] -= np.uint64(1)
    check(pack(values, LAYOUT), LAYOUT)


def test_half_rows_and_other_accumulators_are_refused():
    packed = pack(ramp(), LAYOUT)
    for wrong in (packed[:-1], packed + b"\0"):
        for read in (unpack, check):
            with refused(WRONG_SIZE, "inside a row"):
                read(wrong, LAYOUT)
    with refused(WRONG_SIZE, "accumulator"):
        fold(np.zeros((3, 8), dtype=np.uint64), packed, LAYOUT)


def test_sums_stay_below_the_modulus_at_its_edge():
    layout = ResidueLayout(1, ((1 << 50) - 27, 3), 8, 50)
    top = np.array([[[(1 << 50) - 28] * 8, [2] * 8]], dtype=np.uint64)
    total = top.copy()
    add(total, top, layout)
    assert total[0, :, 0].tolist() == [(1 << 50) - 29, 1]
    rows = top.reshape(2, 8).copy()
    fold(rows, pack(top, layout), layout)
    np.testing.assert_array_equal(rows, total[0])
