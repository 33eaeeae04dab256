"""Packing and modular sums: sizes, ranges, and that a refusal changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from he_protocol.arithmetic.residues import (
    ResidueLayout,
    _kernels,
    add,
    check,
    fold,
    pack,
    pack_into,
    row_moduli,
    unpack,
)
from he_protocol.problems import RESIDUE_RANGE, WRONG_SIZE
from he_testing.problems import expect_problem

LAYOUT = ResidueLayout(polynomials=2, moduli=(97, 113), degree=64, bits=7)


def ramp(layout: ResidueLayout = LAYOUT) -> np.ndarray:
    moduli = np.array(layout.moduli, dtype=np.uint64)[None, :, None]
    return (np.arange(layout.rows * layout.degree, dtype=np.uint64).reshape(layout.shape) * np.uint64(31)) % moduli


def test_a_layout_states_its_shape_and_sizes():
    assert LAYOUT.shape == (2, 2, 64)
    assert (LAYOUT.rows, LAYOUT.row_bytes, LAYOUT.size) == (4, 56, 224)
    assert LAYOUT.zeros().shape == LAYOUT.shape
    assert LAYOUT.zeros().dtype == np.uint64


@pytest.mark.parametrize(
    ("moduli", "degree", "bits", "good"),
    [
        ((128,), 64, 7, True),
        ((129,), 64, 7, False),
        ((97, 129), 64, 7, False),
        ((1 << 62,), 64, 62, True),
        ((1 << 62,), 64, 63, False),
        ((2,), 64, 1, True),
        ((1,), 64, 0, False),
        ((97,), 128, 7, True),
        ((97,), 32, 7, False),
        ((97,), 96, 7, False),
    ],
)
def test_a_layout_that_the_kernels_cannot_bear_is_no_layout(moduli, degree, bits, good):
    """Half a word at the end of a row, or a sum above 2^63, would be wrong numbers and not an error."""
    if good:
        assert ResidueLayout(1, moduli, degree, bits).size == len(moduli) * degree * bits // 8
    else:
        with pytest.raises(ValueError, match="multiple of 64"):
            ResidueLayout(1, moduli, degree, bits)


def test_packing_is_little_endian_without_padding():
    layout = ResidueLayout(1, (1 << 14,), 64, 14)
    values = np.zeros((1, 1, 64), dtype=np.uint64)
    values[0, 0, :5] = [0x3ABC, 0x0123, 0, 0, 0x3FEF]
    values[0, 0, 63] = 0x2000
    packed = pack(values, layout)
    assert len(packed) == 112
    assert int.from_bytes(packed, "little") == 0x3ABC | 0x0123 << 14 | 0x3FEF << 56 | 0x2000 << 14 * 63
    assert packed[:9].hex() == "bcfa480000" + "0000ef3f"  # 0x3fef starts at bit 56 and crosses a word
    assert packed[9:].hex() == "00" * 102 + "80"


@pytest.mark.parametrize(("words", "residues"), [(6, 64), (8, 64), (7, 63), (7, 128), (14, 64), (0, 64)])
def test_only_whole_rows_are_packed_into_just_their_words(words, residues):
    """The kernel writes where it is told to: beyond the end, too, if nobody looked."""
    with pytest.raises(ValueError, match="whole rows"):
        pack_into(np.zeros(words, dtype=np.uint64), np.zeros(residues, dtype=np.uint32), LAYOUT)


def test_unpack_undoes_pack_also_for_parts_of_a_vector():
    packed = pack(ramp(), LAYOUT)
    assert len(packed) == LAYOUT.size
    np.testing.assert_array_equal(unpack(packed, LAYOUT), ramp())
    np.testing.assert_array_equal(unpack(memoryview(packed)[:112], LAYOUT), ramp()[:1])
    assert pack(ramp()[0, 1], LAYOUT) == packed[56:112]


def test_no_rows_are_rows_too():
    assert unpack(b"", LAYOUT).shape == (0, 2, 64)
    check(b"", LAYOUT, 1)
    fold(np.zeros((0, 64), dtype=np.uint64), memoryview(b""), LAYOUT, 3)
    assert pack(np.zeros((0, 64), dtype=np.uint64), LAYOUT) == b""


def test_an_odd_address_is_read_as_well():
    """A body behind a head of any length is not aligned to words."""
    packed = pack(ramp(), LAYOUT)
    for shift in range(1, 9):
        shifted = memoryview(bytes(shift) + packed)[shift:]
        np.testing.assert_array_equal(unpack(shifted, LAYOUT), ramp())
        check(shifted, LAYOUT)


@pytest.mark.parametrize("first_row", range(4))
def test_first_row_picks_the_prime(first_row):
    np.testing.assert_array_equal(row_moduli(LAYOUT, first_row, 3), [(97, 113)[(first_row + i) % 2] for i in range(3)])
    row = pack(np.full(64, 100, dtype=np.uint64), LAYOUT)
    rows = np.full((1, 64), 90, dtype=np.uint64)
    if first_row % 2:
        fold(rows, row, LAYOUT, first_row)
        assert (rows == (190 - 113)).all()
        check(row, LAYOUT, first_row)
    else:
        with expect_problem(RESIDUE_RANGE, f"residue 0 of row {first_row}"):
            fold(rows, row, LAYOUT, first_row)
        with expect_problem(RESIDUE_RANGE):
            check(row, LAYOUT, first_row)


@pytest.mark.parametrize("place", [0, 63, 64, 127, 128, 255])
def test_a_residue_at_its_modulus_is_refused_and_changes_nothing(place):
    """A residue >= p would survive one subtraction and poison every later sum."""
    values = np.zeros(256, dtype=np.uint64)
    values[place] = LAYOUT.moduli[place // 64 % 2]
    packed = pack(values, LAYOUT)
    rows = np.full((4, 64), 5, dtype=np.uint64)
    with expect_problem(RESIDUE_RANGE, f"residue {place % 64} of row {place // 64}"):
        fold(rows, packed, LAYOUT)
    assert (rows == 5).all()
    with expect_problem(RESIDUE_RANGE):
        unpack(packed, LAYOUT)
    values[place] -= np.uint64(1)
    check(pack(values, LAYOUT), LAYOUT)


@pytest.mark.parametrize("bad", range(4))
def test_a_bad_row_behind_good_ones_undoes_them(bad):
    """Rows are added as they are read: what was added before the bad one is taken out again, wrapped or not."""
    start = ramp().reshape(4, 64)
    values = np.broadcast_to(np.array(LAYOUT.moduli, dtype=np.uint64)[None, :, None] - np.uint64(1), LAYOUT.shape)
    values = values.reshape(4, 64).copy()
    values[:, ::3] = 0
    values[bad, 17] = 127
    values[bad, 40] = 126
    rows = start.copy()
    with expect_problem(RESIDUE_RANGE, f"residue 17 of row {bad} (expected below {LAYOUT.moduli[bad % 2]}, got 127)"):
        fold(rows, pack(values, LAYOUT), LAYOUT)
    np.testing.assert_array_equal(rows, start)


def test_half_rows_and_other_accumulators_are_refused():
    packed = pack(ramp(), LAYOUT)
    for wrong in (packed[:-1], packed + b"\0"):
        for read in (unpack, check):
            with expect_problem(WRONG_SIZE, "inside a row"):
                read(wrong, LAYOUT)
    for rows in (1, 3):  # unpack wants whole polynomials
        with expect_problem(WRONG_SIZE, "inside a polynomial"):
            unpack(packed[: rows * LAYOUT.row_bytes], LAYOUT)
    with expect_problem(WRONG_SIZE, "accumulator"):
        fold(np.zeros((3, 64), dtype=np.uint64), packed, LAYOUT)


def test_sums_stay_below_the_modulus_at_its_edge():
    layout = ResidueLayout(1, ((1 << 62), 3), 64, 62)
    top = np.array([[[(1 << 62) - 1] * 64, [2] * 64]], dtype=np.uint64)
    total = top.copy()
    add(total, top, layout)
    assert total[0, :, 0].tolist() == [(1 << 62) - 2, 1]
    rows = top.reshape(2, 64).copy()
    fold(rows, pack(top, layout), layout)
    np.testing.assert_array_equal(rows, total[0])


def test_the_cache_on_disk_can_find_the_kernels_again():
    """A kernel in a closure never hits numba's cache: every process would compile it anew, and leave one more file."""
    for found in _kernels(30):
        cells = {type(cell.cell_contents) for cell in found.py_func.__closure__}
        assert cells <= {int, np.uint64}
