"""The server's optimisers against the papers' formulas, coordinate by coordinate."""

from __future__ import annotations

from math import inf, sqrt
from typing import get_args

import numpy as np
import pytest

from he_protocol.aggregation.optimiser import SQUARES, Optimiser, OptimiserName
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.parties import World

NAMES = get_args(OptimiserName)


def reference(own: Optimiser, x: float, means: list[float]) -> list[float]:
    """One coordinate in plain Python: Hsu, Qi and Brown 2019; Reddi et al. 2021, algorithm 2."""
    m, v, steps = 0.0, own.adaptivity**2, []
    for number, mean in enumerate(means):
        rate = own.learning_rate / (1 + number / own.half_life) if own.half_life else own.learning_rate
        if own.name == "fedavgm":
            m = own.momentum * m + mean
            x += rate * m
        else:
            m = own.momentum * m + (1 - own.momentum) * mean
            square = mean**2
            if own.name == "fedadagrad":
                v = v + square
            elif own.name == "fedadam":
                v = own.squares_decay * v + (1 - own.squares_decay) * square
            else:
                v = v - (1 - own.squares_decay) * square * ((v > square) - (v < square))
            x += rate * m / (sqrt(v) + own.adaptivity)
        steps.append(x)
    return steps


def run(own: Optimiser, model: Floats, means: np.ndarray) -> np.ndarray:
    state, steps = own.fresh(model.size), []
    for number, mean in enumerate(means):
        model, state = own.step(model, state, mean, number)
        assert model.dtype == state.dtype == np.float32
        assert state.shape == (len(own.state), model.size)
        steps.append(model)
    return np.array(steps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("half_life", [0.0, 5.0])
def test_it_is_what_the_paper_says(name: OptimiserName, half_life: float) -> None:
    own = Optimiser(name, 0.1, 0.9, squares_decay=0.95, adaptivity=1e-2, half_life=half_life)
    rng = np.random.default_rng(1)
    model, means = rng.standard_normal(7).astype(np.float32), rng.standard_normal((30, 7)) * np.geomspace(1e-4, 10, 7)
    steps = run(own, model, means)
    for i in range(7):
        np.testing.assert_allclose(
            steps[:, i], reference(own, float(model[i]), means[:, i].tolist()), rtol=2e-4, atol=1e-5
        )


def test_momentum() -> None:
    own = Optimiser(learning_rate=0.5, momentum=0.9)
    model, state = np.array([1, 1, 0, 0], dtype=np.float32), np.array([[1, 0, 0, 2]], dtype=np.float32)
    after, moved = own.step(model, state, np.array([0.1, 0.2, 0.3, 0.4]), 3)
    np.testing.assert_allclose(moved, [[1.0, 0.2, 0.3, 2.2]], rtol=1e-6)
    np.testing.assert_allclose(after, [1.5, 1.1, 0.15, 1.1], rtol=1e-6)
    np.testing.assert_array_equal(model, [1, 1, 0, 0])
    np.testing.assert_array_equal(state, [[1, 0, 0, 2]])


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_stepped_as_the_whole(name: OptimiserName) -> None:
    own = Optimiser(name, momentum=0.5)
    rng = np.random.default_rng(2)
    model, means = rng.standard_normal(10).astype(np.float32), rng.standard_normal((4, 10))
    whole = run(own, model, means)
    np.testing.assert_array_equal(whole[:, 3:7], run(own, model[3:7], means[:, 3:7]))


def test_a_rate_halves() -> None:
    own = Optimiser(learning_rate=0.8, half_life=20.0)
    assert (own.rate(0), own.rate(20), own.rate(60)) == (0.8, 0.4, 0.2)
    assert Optimiser(learning_rate=0.8).rate(10**9) == 0.8


@pytest.mark.parametrize("name", SQUARES)
def test_coordinates_of_all_sizes_move_alike(name: OptimiserName) -> None:
    """What adaptive rates are for: under plain steps the first moves a million times as far."""
    own, plain = Optimiser(name, 0.1, adaptivity=1e-9), Optimiser(learning_rate=0.1)
    means = np.tile([[1e-3, 1e3]], (20, 1))
    moved, plainly = (run(each, np.zeros(2, np.float32), means)[-1] for each in (own, plain))
    assert 0.3 < moved[0] / moved[1] < 3
    assert plainly[1] / plainly[0] == pytest.approx(1e6, 1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mean", [3e38, 1e200, inf])
def test_a_model_that_would_overflow(name: OptimiserName, mean: float) -> None:
    own = Optimiser(name, learning_rate=3.0)
    with expect_problem(COMBINE_REFUSED, "float32"):
        own.step(np.full(2, 3e38, dtype=np.float32), own.fresh(2), np.full(2, mean), 0)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0.0}, {"learning_rate": inf}, {"adaptivity": 0.0}, {"adaptivity": 1e-30, "name": "fedadam"},
     {"half_life": inf}, {"half_life": 1e-320}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    with expect_problem(BAD_PLAN):
        changed(World().task.config, optimiser=Optimiser(**wrong)).check()  # type: ignore[arg-type]
