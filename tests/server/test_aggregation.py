"""From opened sums to their mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_party.keyfile import KeyRecord
from he_protocol import problems
from he_protocol.aggregation.combination import Mean
from he_protocol.config import TaskConfig, TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey
from he_protocol.privacy.quantise import Integers
from he_server.rules.aggregation import mean_of, weight_of
from he_testing.clocks import FakeClock

from .world import START, World

KEY = SigningKey.generate()
WORLD = World(SigningKey.generate(), KeyRecord("aggregator", KEY.public, KEY.private), FakeClock(START))


def config(**changes: Any) -> TaskConfig:
    return WORLD.config(tensors=(TensorSpec("a", (2,)), TensorSpec("b", (1, 2))), **changes)


def mean_of_one(opened: Integers, count: int, plan: TaskConfig) -> Mean:
    """Of a round that was opened in one piece."""
    return taken(plan, [(opened, count)], count)


def test_uniform_divides_by_the_count() -> None:
    np.testing.assert_allclose(mean_of_one(np.array([100, 200, 300, -400]), 4, config()), [0.25, 0.5, 0.75, -1.0])


def test_fixed_divides_by_the_cap() -> None:
    plan = config(weighting="fixed", weight_cap=50.0)
    np.testing.assert_allclose(mean_of_one(np.array([100, 200, 300, -400]), 4, plan), [0.02, 0.04, 0.06, -0.08])


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(-5, 5)), min_size=1, max_size=20),
)
@settings(max_examples=50, deadline=None)
def test_examples_give_the_weighted_mean(clients: list[tuple[int, float]]) -> None:
    plan = config(weighting="examples", weight_cap=64.0, scale=2.0**24)
    weights = np.array([min(n, 64) / 64 for n, _ in clients])
    values = np.array([[x] * 4 for _, x in clients])
    sent = np.concatenate([weights[:, None] * values, weights[:, None] * plan.aggregation.value_range], axis=1)
    opened = np.rint(sent * plan.encryption.scale).astype(np.int64).sum(axis=0)
    expected = (weights[:, None] * values).sum(axis=0) / weights.sum()
    np.testing.assert_allclose(mean_of_one(opened, len(clients), plan), expected, atol=1e-4)


@pytest.mark.parametrize("weight", [0, -5])
def test_a_weight_that_is_not_positive(weight: int) -> None:
    with pytest.raises(ProblemError) as caught:
        mean_of_one(np.array([1, 1, 1, 1, weight]), 3, config(weighting="examples"))
    assert caught.value.problem == problems.COMBINE_REFUSED


SUMS = [(np.array([100, 0, 0, -50]), 1), (np.array([600, 40, 0, 50]), 2), (np.array([900, 0, 9000, 50]), 3)]
"""Means 1, 3, 3 / 0, 0.2, 0 / 0, 0, 30 / -0.5, 0.25, 1/6, at scale 100."""


def taken(plan: TaskConfig, sums: list[tuple[np.ndarray, int]], updates: int = 6) -> Mean:
    """Of a round of buckets, each its sum and number of updates."""
    weights = [weight_of(plan, int(opened[-1]), count, updates) for opened, count in sums]
    values = [opened[:-1] if plan.aggregation.weighting == "examples" else opened for opened, _ in sums]
    return mean_of(values, weights, plan)


def test_the_mean_of_buckets_is_that_of_all_their_updates() -> None:
    np.testing.assert_allclose(taken(config(value_range=30.0), SUMS) * 600, [1600, 40, 9000, 50])


@pytest.mark.parametrize("combination", ["median", "trimmed-mean"])
def test_of_three_buckets_the_middle_one_counts(combination: str) -> None:
    plan = config(buckets=3, combination=combination, value_range=30.0)
    np.testing.assert_allclose(taken(plan, SUMS), [3.0, 0.0, 0.0, 1 / 6])


@given(st.lists(st.lists(st.integers(-(10**9), 10**9), min_size=4, max_size=4), min_size=1, max_size=17))
@settings(max_examples=100, deadline=None)
def test_median_and_trimmed_mean_of_any_number_of_buckets(rows: list[list[int]]) -> None:
    sums = [(np.array(row), 1) for row in rows]
    plan = config(buckets=3, combination="median", scale=1.0, value_range=1e9)
    np.testing.assert_allclose(taken(plan, sums), np.median(rows, axis=0))
    trim = max(1, len(rows) // 4) if len(rows) > 2 else 0
    kept = np.sort(np.array(rows), axis=0)[trim : len(rows) - trim]
    plan = config(buckets=3, combination="trimmed-mean", scale=1.0, value_range=1e9)
    np.testing.assert_allclose(taken(plan, sums), kept.mean(axis=0), atol=1e-3)


def test_a_fixed_weight_is_shared_by_the_updates_that_are_left() -> None:
    """Two of four updates were dropped: half of the expected records are left."""
    plan = config(weighting="fixed", weight_cap=50.0)
    moved = taken(plan, [(np.array([100, 200, 300, -400]), 2)], updates=4)
    np.testing.assert_allclose(moved, [0.04, 0.08, 0.12, -0.16])
