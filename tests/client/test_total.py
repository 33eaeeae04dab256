"""Whether an update comes must tell nothing: a mechanism answers for every input, or leaks a clean bit a round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from he_client.attempt import Train, attempt
from he_client.context import LocalResult, TrainingContext
from he_client.quantise import quantise_update
from he_client.tensors import flatten
from he_client.training import Arrays, arrays, clipped_gradient_sum, difference, load_arrays, tensor_specs
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_PLAN, BAD_TENSORS
from he_protocol.task import Task
from he_testing.problems import expect_problem
from tests.support.parties import World

UNITS = ["client", "record"]
RECORDS = 12


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


NET = network()
HONEST = arrays(NET)


def task_of(unit: str, weighting: str = "") -> Task:
    plan = {"unit": unit, "clip_norm": 1.0, "noise_multiplier": 10.0, "delta": 1e-6, "epsilon_budget": 100.0}
    privacy: dict[str, Any] = plan if unit != "none" else {"unit": "none"}
    how = weighting or ("fixed" if unit == "record" else "uniform")
    numbers = {"scheme": "kahe", "profile": "kahe-30", "value_range": 1.0, "scale": 4096.0, "weight_cap": 10.0}
    return World(plan=numbers | {"weighting": how, "privacy": privacy}, tensors=tensor_specs(NET)).task


def context(task: Task) -> TrainingContext:
    return TrainingContext(task, 0, 1, "phone-1")


def hostile(value: float, second: float) -> Arrays:
    """A model that overflows where feature 2 is large, and only there."""
    model = {name: np.zeros_like(value) for name, value in HONEST.items()}
    model["0.weight"][0, 2], model["2.weight"][0, 0] = value, second
    return model


def records(sick: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(RECORDS, 6)
    x[:, 2] = 0.0
    if sick:
        x[7, 2] = 1.0
    return x, torch.randint(0, 3, (RECORDS,))


def trained(x: torch.Tensor, y: torch.Tensor, model: Arrays) -> Arrays:
    load_arrays(NET, model)
    optimiser = torch.optim.SGD(NET.parameters(), 0.1)
    optimiser.zero_grad()
    cross_entropy(NET(x), y).backward()
    optimiser.step()
    return difference(NET, model)


def by_records(model: Arrays, sick: bool) -> Arrays:
    x, y = records(sick)
    load_arrays(NET, model)
    return clipped_gradient_sum(NET, cross_entropy, x, y, 1.0, microbatch=5)


def by_training(model: Arrays, sick: bool) -> Arrays:
    return trained(*records(sick), model)


def bad_label(_: Arrays, sick: bool) -> Arrays:
    x, y = records(sick)
    y[7] = 99 if sick else 1
    load_arrays(NET, HONEST)
    return clipped_gradient_sum(NET, cross_entropy, x, y, 1.0, microbatch=5)


def failing(error: BaseException) -> Callable[[Arrays, bool], Any]:
    def train(_: Arrays, sick: bool) -> Any:
        if sick:
            raise error
        return {name: np.zeros_like(value) for name, value in HONEST.items()}

    return train


def giving(value: Any) -> Callable[[Arrays, bool], Any]:
    """Gives this where the property is there."""

    def train(_: Arrays, sick: bool) -> Any:
        good = {name: np.full_like(value, 0.01) for name, value in HONEST.items()}
        return (value(good) if callable(value) else value) if sick else good

    return train


def with_value(bad: float) -> Callable[[Arrays], Arrays]:
    return lambda good: good | {"2.bias": np.array([0.0, bad, 0.0])}


class Lost:
    """Reports late what failed in training, as CUDA does."""

    shape = (3,)
    dtype = np.dtype(np.float32)

    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("device-side assert triggered")


def weights(value: Any) -> Callable[[Arrays, bool], Any]:
    """New weights in words; such ones where the property is there."""
    give = giving(value)
    return lambda model, sick: LocalResult(give(model, sick), weights=True)


def with_metrics(metrics: Any) -> Callable[[Arrays, bool], Any]:
    return lambda _, sick: LocalResult(dict(HONEST), metrics=metrics if sick else {})


class Sudden(dict[str, float]):
    """Metrics that raise when they are read."""

    def items(self) -> Any:
        raise RuntimeError("device-side assert triggered")


ATTACKS = {
    "gradients are infinite": (by_records, hostile(3e37, 100.0)),
    "gradients are no numbers": (by_records, hostile(inf, 1.0)),
    "training is infinite": (by_training, hostile(3e37, 100.0)),
    "the loss raises for a record": (bad_label, HONEST),
    "an exception": (failing(ValueError("of your data")), HONEST),
    "out of memory": (failing(MemoryError()), HONEST),
    "the end of the program": (failing(SystemExit(1)), HONEST),
    "no update": (giving(None), HONEST),
    "an empty update": (giving({}), HONEST),
    "an empty list": (giving([]), HONEST),
    "nan": (giving(with_value(nan)), HONEST),
    "infinite": (giving(with_value(-inf)), HONEST),
    "above float32": (giving(with_value(1e300)), HONEST),
    "a tensor that is none": (giving(lambda good: good | {"2.bias": None}), HONEST),
    "a tensor that the device cannot give": (giving(lambda good: good | {"2.bias": Lost()}), HONEST),
    "weights: nan": (weights(with_value(nan)), HONEST),
    "weights: infinite beside an infinite model": (weights(with_value(inf)), hostile(inf, 1.0)),
    "weights: none": (weights(None), HONEST),
    "weights: a tensor that the device cannot give": (weights(lambda good: good | {"2.bias": Lost()}), HONEST),
    "weights: a ragged list": (weights(lambda good: good | {"2.bias": [[1.0], [1.0, 2.0]]}), HONEST),
    "metrics that raise": (with_metrics(Sudden()), HONEST),
    "a ragged list": (giving(lambda good: good | {"2.bias": [[1.0], [1.0, 2.0]]}), HONEST),
}


def comes(task: Task, train: Train, *, raise_errors: bool = False) -> bool:
    """What the server sees."""
    try:
        result = attempt(train, context(task), HONEST, raise_errors=raise_errors)
        encoded = quantise_update(task, flatten(task, result.tensors), result.examples)
    except (ProblemError, Exception, SystemExit):
        return False
    assert encoded.shape == (task.length,)
    if task.config.privacy.noisy:  # and it is noised like any other: zeros would show as well
        assert np.count_nonzero(encoded) > task.length / 2
    return True


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_that_an_update_comes_tells_nothing_of_the_data(unit: str, attack: str) -> None:
    """The guess "no update, so it has such a record" is right half of the time: as good as a coin."""
    train, model = ATTACKS[attack]
    task = task_of(unit)
    seen = [comes(task, lambda _, sick=sick: train(model, sick)) for sick in (False, True)]  # type: ignore[misc]
    assert seen == [True, True]


@pytest.mark.parametrize("attack", [name for name, (train, _) in ATTACKS.items() if train is not by_records])
def test_without_the_defence_every_guess_is_right(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with errors raised and values refused, as where no DP is promised."""
    train, model = ATTACKS[attack]
    if train is bad_label:
        monkeypatch.setitem(globals(), "clipped_gradient_sum", partial(clipped_gradient_sum, raise_errors=True))
    task = task_of("none")
    seen = [comes(task, lambda _, sick=sick: train(model, sick), raise_errors=True) for sick in (False, True)]  # type: ignore[misc]
    assert seen == [True, False]


@pytest.mark.parametrize("model", [hostile(3e37, 100.0), hostile(inf, 1.0)], ids=["infinite", "no number"])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero(model: Arrays) -> None:
    """So that it moves the sum by no more than any other; unchecked it would be all of the sum."""
    load_arrays(NET, model)
    x, y = records(sick=True)
    rest = [i for i in range(RECORDS) if i != 7]
    whole = clipped_gradient_sum(NET, cross_entropy, x, y, 1.0)
    other = clipped_gradient_sum(NET, cross_entropy, x[rest], y[rest], 1.0)
    assert all(np.isfinite(value).all() for value in whole.values())
    if np.isfinite(model["0.weight"]).all():
        assert any(value.any() for value in whole.values())
    for name, value in whole.items():
        np.testing.assert_allclose(value, other[name], atol=1e-5)


def test_squares_that_overflow_count_as_zero_too() -> None:
    """Every value of a gradient in float64 is finite, its norm is not."""
    net = torch.nn.Linear(2, 1, bias=False).double()
    x, y = torch.tensor([[1e200, 1e200], [0.5, 0.0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    total = clipped_gradient_sum(net, lambda output, target: (output - target).sum(), x, y, 1.0)
    assert total["weight"].tolist() == [[0.5, 0.0]]


def test_a_record_on_which_the_loss_raises_costs_no_other_record() -> None:
    load_arrays(NET, HONEST)
    x, y = records(sick=False)
    rest = [i for i in range(RECORDS) if i != 7]
    other = clipped_gradient_sum(NET, cross_entropy, x[rest], y[rest], 1.0)
    y[7] = 99
    for name, value in clipped_gradient_sum(NET, cross_entropy, x, y, 1.0, microbatch=5).items():
        np.testing.assert_allclose(value, other[name], atol=1e-5)
    with pytest.raises(IndexError, match="out of bounds"):
        clipped_gradient_sum(NET, cross_entropy, x, y, 1.0, raise_errors=True)
    with expect_problem(BAD_TENSORS, "12 in inputs, 5 in targets"):
        clipped_gradient_sum(NET, cross_entropy, x, y[:5], 1.0)


@pytest.mark.parametrize("examples", [0, 0.0, -1, nan, -inf, None, "many", 10**400, inf, 1e-320, np.ones(2)])
def test_any_number_of_examples_is_an_answer(examples: Any) -> None:
    task = task_of("client", "examples")
    flat = flatten(task, {name: np.full_like(value, 0.1) for name, value in HONEST.items()})
    encoded = quantise_update(task, flat, examples)
    usable = isinstance(examples, int | float) and examples >= 10
    assert abs(encoded[-1] - (4096 if usable else 0)) < 12 * task.noise_std
    with expect_problem(BAD_PLAN):
        quantise_update(task_of("client"), flat, 3.0)


def test_an_update_that_cannot_be_used_is_zero_and_noised(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of("client")
    flat = np.full(task.parameters, 1.0, dtype=np.float32)
    flat[3] = nan
    encoded = quantise_update(task, flat, None)
    assert abs(encoded.mean()) < 6 * task.noise_std / np.sqrt(task.parameters)
    assert "a zero update takes its place" in caplog.text


def test_errors_are_raised_without_dp_and_where_asked_for() -> None:
    def fails(_: object) -> Any:
        raise ZeroDivisionError

    for task, raise_errors in ((task_of("none"), False), (task_of("client"), True)):
        with pytest.raises(ZeroDivisionError):
            attempt(fails, context(task), HONEST, raise_errors=raise_errors)
    result = attempt(fails, context(task_of("client")), HONEST)
    assert result.examples is None
    assert isinstance(result.tensors, dict)
    assert all(not value.any() for value in result.tensors.values())


def test_a_list_in_the_models_order_is_an_update_too() -> None:
    for task in (task_of("client"), task_of("none")):
        result = attempt(lambda model: [2 * value for value in model.values()], context(task), HONEST)
        assert result.examples is None
        assert np.array_equal(flatten(task, result.tensors), 2 * flatten(task, HONEST))


def test_tensors_of_another_model_are_refused_all_the_same() -> None:
    task = task_of("client")
    result = attempt(lambda _: {"other": np.zeros(3, dtype=np.float32)}, context(task), HONEST)
    with expect_problem(BAD_TENSORS):
        flatten(task, result.tensors)
