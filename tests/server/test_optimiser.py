"""From an opened sum to the next model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_protocol import problems
from he_protocol.keyfile import KeyRecord
from he_protocol.problems import Refusal
from he_protocol.signing import SigningKey
from he_protocol.task import Optimiser, TaskConfig, TensorSpec
from he_server.optimiser import mean_update, next_model

from .world import Clock, World

KEY = SigningKey.generate()
WORLD = World(SigningKey.generate(), KeyRecord("aggregator", KEY.public, KEY.private), Clock())


def config(**changes: object) -> TaskConfig:
    return WORLD.config(tensors=(TensorSpec("a", (2,)), TensorSpec("b", (1, 2))), **changes)


def test_uniform_divides_by_the_count() -> None:
    np.testing.assert_allclose(mean_update(np.array([100, 200, 300, -400]), 4, config()), [0.25, 0.5, 0.75, -1.0])


def test_fixed_divides_by_the_cap() -> None:
    plan = config(weighting="fixed", weight_cap=50.0)
    np.testing.assert_allclose(mean_update(np.array([100, 200, 300, -400]), 4, plan), [0.02, 0.04, 0.06, -0.08])


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(-5, 5)), min_size=1, max_size=20),
)
@settings(max_examples=50, deadline=None)
def test_examples_give_the_weighted_mean(clients: list[tuple[int, float]]) -> None:
    plan = config(weighting="examples", weight_cap=64.0, scale=2.0**24)
    weights = np.array([min(n, 64) / 64 for n, _ in clients])
    values = np.array([[x] * 4 for _, x in clients])
    sent = np.concatenate([weights[:, None] * values, weights[:, None] * plan.value_range], axis=1)
    opened = np.rint(sent * plan.scale).astype(np.int64).sum(axis=0)
    expected = (weights[:, None] * values).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(mean_update(opened, len(clients), plan), expected, atol=1e-4)


@pytest.mark.parametrize("weight", [0, -5])
def test_a_weight_that_is_not_positive(weight: int) -> None:
    with pytest.raises(Refusal) as caught:
        mean_update(np.array([1, 1, 1, 1, weight]), 3, config(weighting="examples"))
    assert caught.value.problem == problems.COMBINE_REFUSED


def test_momentum_and_layout() -> None:
    plan = config(optimiser=Optimiser(learning_rate=0.5, momentum=0.9))
    model = {"a": np.ones(2, dtype=np.float32), "b": np.zeros((1, 2), dtype=np.float32)}
    velocity = np.array([1, 0, 0, 2], dtype=np.float32)
    after, moved = next_model(model, velocity, np.array([0.1, 0.2, 0.3, 0.4]), plan)
    np.testing.assert_allclose(moved, [1.0, 0.2, 0.3, 2.2], rtol=1e-6)
    np.testing.assert_allclose(after["a"], [1.5, 1.1], rtol=1e-6)
    np.testing.assert_allclose(after["b"], [[0.15, 1.1]], rtol=1e-6)
    assert {tensor.dtype for tensor in after.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(model["a"], [1, 1])


def test_a_model_that_would_overflow() -> None:
    model = {"a": np.full(2, 3e38, dtype=np.float32), "b": np.zeros((1, 2), dtype=np.float32)}
    with pytest.raises(Refusal) as caught, np.errstate(over="ignore"):
        next_model(model, np.zeros(4, dtype=np.float32), np.full(4, 3e38), config())
    assert caught.value.problem == problems.COMBINE_REFUSED
