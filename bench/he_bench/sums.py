"""A server's sums without a server: folding packed updates, and one opened sum."""

from __future__ import annotations

import io

import numpy as np

from he_bench.world import Update, World
from he_protocol.arithmetic.residues import ResidueLayout, Residues, fold, pack
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.scheme import combine
from he_protocol.task import Task
from he_server.blobs.vectors import row_blocks

ROWS_AT_ONCE = 1024
"""Rows that `random_vector` draws at once: bounds its memory."""


def sum_layout(task: Task) -> ResidueLayout:
    """Layout of the section that the server sums."""
    layout = task.section("sum").layout
    if layout is None:
        raise TypeError(f"scheme {task.config.encryption.scheme} declares a sum part without a layout")
    return layout


def fold_in(total: Residues, packed: bytes, layout: ResidueLayout) -> None:
    """Add one packed vector to `total` (shape (rows, degree)) by row blocks, as `he_server.blobs.vectors` does."""
    for first, block in row_blocks(io.BytesIO(packed), layout):
        fold(total[first : first + len(block) // layout.row_bytes], block, layout, first)


def fold_times(packed: bytes, layout: ResidueLayout, times: int) -> Residues:
    """A fresh sum of `times` times the same packed vector, shape (polynomials, limbs, degree)."""
    total = np.zeros((layout.rows, layout.degree), dtype=np.uint64)
    for _ in range(times):
        fold_in(total, packed, layout)
    return total.reshape(layout.shape)


def random_vector(layout: ResidueLayout) -> bytes:
    """Uniform residues, packed: for an addition they are as good as a ciphertext."""
    generator = np.random.default_rng(1)
    moduli = np.array(layout.moduli, dtype=np.uint64)
    packed = []
    for first in range(0, layout.rows, ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, layout.rows)) % len(moduli)
        drawn = generator.integers(0, moduli[rows][:, None], (len(rows), layout.degree), dtype=np.uint64)
        packed.append(pack(drawn, layout))
    return b"".join(packed)


def opened(world: World, update: Update, times: int) -> Integers:
    """The sum of `times` times one update, folded, released by a quorum and combined."""
    task = world.task
    total = fold_times(update.sections[task.section("sum").name], sum_layout(task), times)
    return combine(task.scheme, total, world.released(update, times), task.length, times, task.epoch_id)
