"""From floats to noised integers: clipping, weights, noise, and no bias."""

from __future__ import annotations

from math import hypot, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from he_client.quantise import BLOCK, Limited, UpdateQuantiser, quantise_update, secret_words
from he_client.tensors import flatten, unflatten
from he_protocol.config import TensorSpec
from he_protocol.privacy.plan import sensitivity
from he_protocol.problems import BAD_PLAN, BAD_TENSORS
from he_protocol.task import Task
from he_testing.problems import expect_problem
from tests.support.parties import World

CLIENT_LEVEL = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 0.006, "delta": 1e-5, "epsilon_budget": 1e12}
SLIGHT = 45
"""Integers: twelve deviations of the noise that no plan may go below, and so of `CLIENT_LEVEL`'s."""


def task_of(world: World, length: int = 10, **changes: Any) -> Task:
    """A task of `length` parameters; "privacy" as a plan's table."""
    plan = world.plan | changes
    other = World(plan=plan, tensors=(TensorSpec("w", (length,)),), authority=world.authority)
    return other.task


class Words:
    """Words from a seed; counts what it gave."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.asked: list[int] = []

    def __call__(self, count: int) -> npt.NDArray[np.uint64]:
        self.asked.append(count)
        return self.generator.integers(0, 1 << 64, count, dtype=np.uint64)


def no_words(count: int) -> npt.NDArray[np.uint64]:
    """All ones: never rounds up."""
    return np.full(count, (1 << 64) - 1, dtype=np.uint64)


def floats(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def test_without_privacy_it_is_a_scaled_rounding(world: World) -> None:
    task = task_of(world, 4)
    encoded = quantise_update(task, floats(0.0, 1.0, -1.0, 0.25), None, no_words)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [0, 1024, -1024, 256]


def test_coordinates_are_cut_to_the_range(world: World) -> None:
    task = task_of(world, 3)
    assert quantise_update(task, floats(4.5, -1e30, 3.5), None, no_words).tolist() == [4096, -4096, 3584]


def test_rounding_up_and_down_happens_in_proportion(world: World) -> None:
    task = task_of(world, 20_000)
    encoded = quantise_update(task, np.full(20_000, 0.3 / 1024, dtype=np.float32), None, Words(1))
    assert set(encoded.tolist()) == {0, 1}
    assert abs(encoded.mean() - 0.3) < 6 * sqrt(0.3 * 0.7 / 20_000)


def test_a_client_level_update_is_clipped_to_its_norm(world: World) -> None:
    task = task_of(world, 2, privacy=CLIENT_LEVEL)
    assert np.abs(quantise_update(task, floats(3.0, 4.0), None, Words(1)) - [614.4, 819.2]).max() <= SLIGHT
    assert np.abs(quantise_update(task, floats(0.3, 0.4), None, Words(1)) - [307.2, 409.6]).max() <= SLIGHT


def test_a_record_level_sum_is_left_alone(world: World) -> None:
    """Its records were clipped one by one; many of them sum to more than the norm."""
    plan = CLIENT_LEVEL | {"unit": "record", "sampling_rate": 0.5}
    task = task_of(world, 2, privacy=plan, weighting="fixed", weight_cap=8.0)
    assert np.abs(quantise_update(task, floats(3.0, 4.0), None, Words(1)) - [3072, 4096]).max() <= SLIGHT


def test_the_weight_rides_along_and_scales_the_update(world: World) -> None:
    task = task_of(world, 2, weighting="examples", weight_cap=100.0)
    assert task.length == 3
    assert quantise_update(task, floats(1.0, -2.0), 50, no_words).tolist() == [512, -1024, 2048]
    assert quantise_update(task, floats(1.0, -2.0), 100, no_words).tolist() == [1024, -2048, 4096]
    assert quantise_update(task, floats(1.0, -2.0), 1e9, no_words).tolist() == [1024, -2048, 4096]


def test_two_weighted_updates_sum_to_a_weighted_mean(world: World) -> None:
    task = task_of(world, 1, weighting="examples", weight_cap=100.0)
    total = quantise_update(task, floats(1.0), 25, no_words) + quantise_update(task, floats(3.0), 75, no_words)
    assert total[0] / total[1] * task.config.aggregation.value_range == pytest.approx((25 * 1 + 75 * 3) / 100)


def test_a_clipped_update_keeps_its_bound_under_its_weight(world: World) -> None:
    task = task_of(world, 2, privacy=CLIENT_LEVEL, weighting="examples", weight_cap=10.0)
    encoded = quantise_update(task, floats(30.0, 40.0), 5, Words(3))
    assert np.abs(encoded - [307.2, 409.6, 2048]).max() <= 2 * SLIGHT


@pytest.mark.parametrize("unit", ["client", "record"])
def test_the_noise_is_what_the_task_promises(world: World, unit: str) -> None:
    plan = CLIENT_LEVEL | {"unit": unit, "noise_multiplier": 0.5}
    count = 40_000
    task = task_of(world, count, privacy=plan, weighting="fixed" if unit == "record" else "uniform")
    moved = sensitivity(task.config.privacy, scale=1024.0, length=count)
    promised = hypot(0.5 * moved, 2) / sqrt(task.config.rounds.min_clients)
    assert task.noise_std == pytest.approx(promised)
    encoded = quantise_update(task, np.zeros(count, dtype=np.float32), None)
    assert abs(encoded.std() / promised - 1) < 6 / sqrt(2 * count)
    assert abs(encoded.mean()) < 6 * promised / sqrt(count)
    assert abs(np.corrcoef(encoded[:-1], encoded[1:])[0, 1]) < 6 / sqrt(count)


def test_the_noise_covers_the_weight_too(world: World) -> None:
    """Zero examples would otherwise show: the weight is a coordinate like the others."""
    plan = CLIENT_LEVEL | {"noise_multiplier": 0.5}
    task = task_of(world, 1, privacy=plan, weighting="examples", weight_cap=10.0)
    weights = [int(quantise_update(task, floats(0.0), 10)[1]) for _ in range(400)]
    assert abs(np.std(weights) / task.noise_std - 1) < 6 / sqrt(2 * 400)
    assert abs(np.mean(weights) - 4096) < 6 * task.noise_std / sqrt(400)


def test_the_same_words_give_the_same_integers(world: World) -> None:
    task = task_of(world, 500, privacy=CLIENT_LEVEL | {"noise_multiplier": 1.0})
    update = np.linspace(-1, 1, 500, dtype=np.float32)
    assert np.array_equal(quantise_update(task, update, None, Words(7)), quantise_update(task, update, None, Words(7)))
    assert not np.array_equal(
        quantise_update(task, update, None, Words(7)), quantise_update(task, update, None, Words(8))
    )


def test_secret_words_are_fresh_every_time() -> None:
    one, other = secret_words(1000), secret_words(1000)
    assert one.dtype == np.uint64
    assert not set(one.tolist()) & set(other.tolist())


def test_blocks_join_to_the_whole_and_each_draws_its_own_words(world: World) -> None:
    task = task_of(world, 2 * BLOCK + 5)
    update = np.random.default_rng(1).normal(size=task.length).astype(np.float32)
    words = Words(1)
    whole = quantise_update(task, update, None, words)
    assert whole.shape == (task.length,)
    assert words.asked == [BLOCK // 2, BLOCK // 2, 3]  # two coordinates share a 64-bit word
    encoder = UpdateQuantiser(task, update, None, no_words)
    pieces = [encoder.block(at, at + 1000) for at in range(0, task.length, 1000)]
    assert np.array_equal(np.concatenate(pieces), quantise_update(task, update, None, no_words))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_without_a_dp_plan_what_is_not_finite_is_refused(world: World, bad: float) -> None:
    with expect_problem(BAD_TENSORS, "finite"):
        quantise_update(task_of(world, 3), floats(0.0, bad, 1.0), None)


def test_another_length_is_refused(world: World) -> None:
    with expect_problem(BAD_TENSORS, "(3,)"):
        quantise_update(task_of(world, 3), floats(0.0, 1.0), None)


@pytest.mark.parametrize("examples", [0.0, -1.0, float("nan"), "many", "5", b"5", 1j, [5], np.ones(2), object()])
def test_a_number_of_examples_that_is_none_is_refused(world: World, examples: Any) -> None:
    with expect_problem(BAD_PLAN, "positive"):
        quantise_update(task_of(world, 1, weighting="examples"), floats(0.0), examples)


@pytest.mark.parametrize(("weighting", "examples"), [("uniform", 3.0), ("fixed", 3.0), ("examples", None)])
def test_examples_go_with_their_weighting_only(world: World, weighting: str, examples: float | None) -> None:
    with expect_problem(BAD_PLAN, "weighting 'examples'"):
        quantise_update(task_of(world, 1, weighting=weighting), floats(0.0), examples)


def test_tensors_flatten_in_the_tasks_order_and_back() -> None:
    task = World(tensors=(TensorSpec("b", (2,)), TensorSpec("a", (2, 2)))).task
    tensors = {"a": floats(1, 2, 3, 4).reshape(2, 2), "b": floats(5, 6)}
    flat = flatten(task, tensors)
    assert (flat.tolist(), flat.dtype) == ([5, 6, 1, 2, 3, 4], np.float32)
    back = unflatten(task, flat)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    assert back.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({}, "w"),
        ({"v": floats(1, 2)}, "v, w"),
        ({"w": floats(1, 2, 3)}, "w"),
        ({"w": floats(1, 2).reshape(2, 1)}, "w"),
        ({"w": floats(1, 2), "x": floats(1)}, "x"),
    ],
)
def test_tensors_of_another_model_are_named(tensors: dict[str, npt.NDArray[np.float32]], named: str) -> None:
    with expect_problem(BAD_TENSORS, f"these differ: {named} "):
        flatten(World(tensors=(TensorSpec("w", (2,)),)).task, tensors)


def limited(task: Task, update: npt.NDArray[np.float32], examples: float | None = None) -> Limited:
    return UpdateQuantiser(task, update, examples, Words(1)).limited


def test_an_update_beyond_the_value_range_is_said_loudly(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert limited(task_of(world, 4), floats(5.0, 3.0, -4.5, 0.0)).saturated == 0.5
    [line] = caplog.messages
    assert "50 % of the update's coordinates were cut to the task's value range, ±4:" in line
    assert "aggregation.value_range" in line


def test_what_just_fits_is_not_cut_and_a_little_is_not_warned_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """0.1 as float32 is above 0.1: nobody can send less than the rounded range."""
    edge = task_of(world, 3, value_range=0.1)
    assert limited(edge, floats(0.1, -0.1, 0.05)).saturated == 0.0
    assert limited(edge, floats(0.1, -np.nextafter(np.float32(0.1), np.float32(1)), 0.05)).saturated == 1 / 3
    caplog.clear()
    count = 2 * BLOCK + 1000
    values = np.zeros(count, dtype=np.float32)
    values[-60:] = 5.0
    assert limited(task_of(world, count), values).saturated == 60 / count < 0.001
    assert not caplog.messages
    values[:10] = -5.0
    assert limited(task_of(world, count), values).saturated == 70 / count > 0.001
    assert len(caplog.messages) == 1


def test_only_what_is_sent_counts_as_cut(world: World) -> None:
    """A light weight, or a clip, brings coordinates back into the range."""
    weighted = task_of(world, 2, weighting="examples", weight_cap=100.0)
    assert limited(weighted, floats(5.0, 5.0), 50).saturated == 0.0
    assert limited(weighted, floats(5.0, 5.0), 100).saturated == 1.0
    assert limited(task_of(world, 2, privacy=CLIENT_LEVEL), floats(30.0, 40.0)).saturated == 0.0


@pytest.mark.parametrize(("examples", "said"), [(201, True), (200, False), (100, False), (1, False)])
def test_many_more_examples_than_count_are_said_loudly(
    world: World, caplog: pytest.LogCaptureFixture, examples: float, said: bool
) -> None:
    limited(task_of(world, 2, weighting="examples", weight_cap=100.0), floats(0.5, 0.5), examples)
    assert ["counts as one of 100 examples, the task's weight_cap" in line for line in caplog.messages] == [True] * said


def test_a_clip_that_takes_most_of_an_update_is_said_loudly(world: World, caplog: pytest.LogCaptureFixture) -> None:
    task = task_of(world, 2, privacy=CLIENT_LEVEL)
    took = limited(task, floats(14.4, 19.2))
    assert (took.norm, took.clipped_norm) == (pytest.approx(24), pytest.approx(1))
    [line] = caplog.messages
    assert "norm of 24 was clipped to the task's clip_norm, 1:" in line
    caplog.clear()
    took = limited(task, floats(0.6, 0.9))
    assert took.norm > took.clipped_norm == pytest.approx(1)
    took = limited(task, floats(0.3, 0.4))
    assert took.norm == took.clipped_norm == pytest.approx(0.5)
    assert not caplog.messages


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_that_is_not_finite_names_its_tensor(bad: float, caplog: pytest.LogCaptureFixture) -> None:
    """In the refusal without DP; with it in the local log only, and the update goes on as zero."""
    specs = (TensorSpec("first", (2, 2)), TensorSpec("gain", ()), TensorSpec("last", (3,)))
    update = {"first": np.zeros((2, 2)), "gain": np.float64(bad), "last": np.array([0.0, bad, bad])}
    named = "1 of 1 values of tensor 'gain', 2 of 3 values of tensor 'last' are not finite"
    plain = World(tensors=specs).task
    with expect_problem(BAD_TENSORS, named):
        quantise_update(plain, flatten(plain, update), None)
    private = World(plan={"privacy": CLIENT_LEVEL}, tensors=specs).task
    assert np.abs(quantise_update(private, flatten(private, update), None)).max() <= SLIGHT
    assert f"{named} (NaN, infinite, or beyond float32): a zero update takes its place" in caplog.text
