"""Packed residues of every width that a profile has: `check`, `unpack` and `fold` must say the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from he_protocol.arithmetic.residues import ResidueLayout, check, fold, pack, unpack
from he_protocol.errors import ProblemError
from tests.fuzz.vectors import load


def _layout(v: dict[str, Any]) -> ResidueLayout:
    described = v["layout"]
    return ResidueLayout(described["polynomials"], tuple(described["moduli"]), described["degree"], described["bits"])


_VECTORS = load("good_residues")
LAYOUTS = list(dict.fromkeys(map(_layout, _VECTORS)))
SEEDS = [bytes([LAYOUTS.index(_layout(v))]) + bytes.fromhex(v["packed"]) for v in _VECTORS]


def verdict(work: Callable[..., object], *arguments: object) -> str:
    """The problem, or nothing."""
    try:
        work(*arguments)
    except ProblemError as refusal:
        return refusal.problem.slug
    return ""


def run(data: bytes) -> None:
    """The first byte picks a layout."""
    if not data:
        return
    layout, packed = LAYOUTS[data[0] % len(LAYOUTS)], data[1:]
    rows = np.zeros((len(packed) // layout.row_bytes, layout.degree), dtype=np.uint64)
    checked, folded = verdict(check, packed, layout), verdict(fold, rows, packed, layout)
    assert checked == folded
    if checked:
        assert not rows.any(), "a refused vector was added"
        assert verdict(unpack, packed, layout) in {checked, "wrong-size"}
        return
    assert pack(rows, layout) == packed
    if len(rows) % len(layout.moduli) == 0:
        assert pack(unpack(packed, layout), layout) == packed
