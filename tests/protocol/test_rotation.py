"""The rotation: orthonormal, the same for everybody, undone exactly, and nothing sticks out after it."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt
import pytest

from he_protocol.privacy.rotation import LARGEST_BLOCK, SLIGHTLY_LESS, Rotation
from he_protocol.problems import BAD_PLAN
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.parties import World

EPOCH = bytes(range(40))
LENGTHS = (1, 2, 3, 4, 5, 15, 16, 17, 63, 100, 255, 1023, 1024, 1025, 2047, 2048, 3110, 5000, 20_001)


def hadamard(size: int) -> npt.NDArray[np.float64]:
    """Sylvester's matrix over its root."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / sqrt(size)


def reference(values: npt.NDArray[np.float64], rotation: Rotation) -> npt.NDArray[np.float64]:
    """Signs, columns of the vector read as rows, what is left over; signs, blocks, what is left over: by matrices."""
    block, length = rotation.block, rotation.length
    matrix, whole, out = hadamard(block), length // block * block, values.copy()
    for number in range(2):
        bits = np.unpackbits(rotation._signs(number).view(np.uint8), bitorder="little")[:length]
        out *= 1.0 - 2.0 * bits
        if number == 0:
            out[:whole] = (matrix @ out[:whole].reshape(block, -1)).reshape(-1)
        else:
            out[:whole] = (out[:whole].reshape(-1, block) @ matrix).reshape(-1)
        if whole < length:
            out[length - block :] = matrix @ out[length - block :]
    return out


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_what_the_matrices_say_and_is_undone(length: int) -> None:
    rotation = Rotation(length, EPOCH)
    values = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    before = values.copy()
    turned = rotation.forward(values)
    assert turned.dtype == np.float32
    assert (values == before).all()
    wanted = reference(values.astype(np.float64) * SLIGHTLY_LESS, rotation)
    assert np.allclose(turned, wanted, rtol=0, atol=3e-6)
    back = rotation.inverse(wanted)
    assert np.allclose(back, values.astype(np.float64) * SLIGHTLY_LESS, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_no_norm_grows(length: int) -> None:
    """Sensitivity stays what the clip made it, whatever float32 rounds."""
    rng, rotation = np.random.default_rng(1), Rotation(length, EPOCH)
    spike, equal = np.zeros(length), np.ones(length)
    spike[-1] = 1e6
    for values in (spike, equal, rng.standard_normal(length), rng.standard_cauchy(length)):
        update = values.astype(np.float32)
        norm = np.linalg.norm(update.astype(np.float64))
        assert (1 - 1e-5) * norm <= np.linalg.norm(rotation.forward(update).astype(np.float64)) <= norm


@pytest.mark.parametrize("length", [3110, 13_414, 40_000])
@pytest.mark.parametrize("kind", ["one coordinate", "one stretch", "one column", "all equal", "a wave", "heavy tails"])
def test_nothing_sticks_out(length: int, kind: str) -> None:
    """Off: without it a coordinate is up to sqrt(d) times a typical one, and a small value range cuts it."""
    at, rng = np.arange(length), np.random.default_rng(2)
    values = {
        "one coordinate": at == length // 3,
        "one stretch": (at > 100) & (at < 140),
        "one column": at % (length // LARGEST_BLOCK) == 0,
        "all equal": at >= 0,
        "a wave": np.cos(at / 7),
        "heavy tails": rng.standard_cauchy(length),
    }[kind].astype(np.float32)
    values /= np.linalg.norm(values)
    turned = Rotation(length, EPOCH).forward(values)
    assert np.abs(turned).max() * sqrt(length) < 6.5
    if kind.startswith("one"):
        assert np.abs(values).max() * sqrt(length) > 1.5


def test_everybody_turns_alike_and_every_epoch_otherwise() -> None:
    values = np.ones(5000, dtype=np.float32)
    assert (Rotation(5000, EPOCH).forward(values) == Rotation(5000, EPOCH).forward(values)).all()
    assert not np.allclose(Rotation(5000, EPOCH).forward(values), Rotation(5000, bytes(40)).forward(values))


@pytest.mark.parametrize("combination", ["median", "trimmed-mean"])
def test_what_chooses_among_coordinates_goes_with_no_rotation(combination: str) -> None:
    config = changed(World().task.config, rotation=True)
    config.check()
    with expect_problem(BAD_PLAN, "rotation"):
        changed(config, combination=combination, buckets=3, min_clients=3, max_clients=9).check()
