"""The PyTorch helper against plain loops over records."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from he_client.training import arrays, clipped_gradient_sum, difference, load_arrays, poisson_sample, tensor_specs
from he_protocol.config import TensorSpec
from he_protocol.problems import BAD_TENSORS
from he_testing.problems import expect_problem
from tests.client.per_record import norm_of, plain_loop


class Affine(nn.Module):
    """Has a scalar parameter, of shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.5, -0.5]]))
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.T) * self.gain


def affine() -> nn.Module:
    return Affine()


def classifier() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def convolution() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return mse_loss(output, target)


def classes(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output, target)


def records(count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *shape, generator=generator) * 3, torch.randint(3, (count,), generator=generator)


@pytest.mark.parametrize(("make", "shape"), [(classifier, (5,)), (convolution, (1, 5))], ids=["linear", "convolution"])
@pytest.mark.parametrize("clip", [0.05, 2.45, 1e6], ids=["all clipped", "some clipped", "none clipped"])
@pytest.mark.parametrize("microbatch", [4, 64], ids=["in pieces", "at once"])
def test_it_is_the_loop_over_records(
    make: Callable[[], nn.Module], shape: tuple[int, ...], clip: float, microbatch: int
) -> None:
    module = make()
    inputs, targets = records(11, shape)
    expected = plain_loop(module, classes, inputs, targets, clip)
    got = clipped_gradient_sum(module, classes, inputs, targets, clip, microbatch=microbatch)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=2e-4, atol=2e-6, err_msg=name)
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(("make", "shape"), [(classifier, (5,)), (convolution, (1, 5))], ids=["linear", "convolution"])
def test_some_of_the_middle_case_are_clipped_and_some_are_not(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    """Otherwise the test above would compare less than it says."""
    module = make()
    inputs, targets = records(11, shape)
    norms = [
        norm_of(clipped_gradient_sum(module, classes, inputs[i : i + 1], targets[i : i + 1], 1e6)) for i in range(11)
    ]
    assert min(norms) < 2.45 < max(norms)


def test_a_scalar_parameter_counts_in_the_norm() -> None:
    module = affine()
    inputs, targets = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[0.0], [1.0]])
    expected = plain_loop(module, squared, inputs, targets, 0.5)
    got = clipped_gradient_sum(module, squared, inputs, targets, 0.5)
    assert got["gain"].shape == ()
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("clip", [0.01, 0.7])
def test_one_record_moves_the_sum_by_at_most_the_norm(clip: float) -> None:
    """The sensitivity that the accountant believes in."""
    module = classifier()
    inputs, targets = records(12, (5,))
    whole = clipped_gradient_sum(module, classes, inputs, targets, clip)
    for left_out in range(12):
        rest = [i for i in range(12) if i != left_out]
        other = clipped_gradient_sum(module, classes, inputs[rest], targets[rest], clip)
        moved = norm_of({name: whole[name] - other[name] for name in whole})
        assert 0 < moved <= clip * (1 + 1e-5)
    assert norm_of(whole) <= 12 * clip * (1 + 1e-6)


def test_an_enormous_gradient_is_clipped_too() -> None:
    module = affine()
    got = clipped_gradient_sum(module, squared, torch.tensor([[1e12, 1e12]]), torch.tensor([[0.0]]), 1.0)
    assert norm_of(got) == pytest.approx(1.0, rel=1e-5)


def test_a_gradient_of_zero_stays_zero() -> None:
    module = affine()
    got = clipped_gradient_sum(module, squared, torch.zeros(1, 2), torch.zeros(1, 1), 1.0)
    assert norm_of(got) == 0.0


def test_no_records_give_zeros_of_every_shape() -> None:
    module = classifier()
    inputs, targets = records(0, (5,))
    got = clipped_gradient_sum(module, classes, inputs, targets, 1.0)
    assert {name: value.shape for name, value in got.items()} == {n: v.shape for n, v in arrays(module).items()}
    assert norm_of(got) == 0.0


@pytest.mark.parametrize("make", [affine, classifier, convolution])
def test_arrays_go_into_a_module_and_come_out_the_same(make: Callable[[], nn.Module]) -> None:
    module = make()
    before = arrays(module)
    assert [TensorSpec(name, value.shape) for name, value in before.items()] == list(tensor_specs(module))
    assert {name: value.shape for name, value in before.items()} == {
        name: tuple(value.shape) for name, value in module.state_dict().items()
    }
    wanted = {name: value + np.float32(0.5) for name, value in before.items()}
    load_arrays(module, wanted)
    after = arrays(module)
    assert all(np.array_equal(after[name], wanted[name]) for name in wanted)
    assert all(value.dtype == np.float32 for value in after.values())
    moved = difference(module, before)
    assert all(np.allclose(value, 0.5) and value.shape == before[name].shape for name, value in moved.items())
    assert all(isinstance(value, np.ndarray) for value in moved.values())


def normalised() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def test_buffers_are_averaged_if_asked_for_and_counters_never() -> None:
    module = normalised()
    assert "1.running_mean" not in arrays(module)
    before = arrays(module, buffers=True)
    assert [spec.name for spec in tensor_specs(module, buffers=True)] == list(before)
    assert before.keys() == module.state_dict().keys() - {"1.num_batches_tracked"}
    module(torch.randn(6, 5))
    moved = difference(module, before)
    assert moved["1.running_mean"].any()
    assert not moved["0.weight"].any()
    load_arrays(module, before)
    assert not difference(module, before)["1.running_mean"].any()


def test_what_a_task_excludes_stays_as_the_device_has_it() -> None:
    """A head of one's own, say: neither loaded nor sent."""
    module = normalised()
    shared = {name: value + np.float32(1) for name, value in arrays(module).items() if not name.startswith("2.")}
    own = arrays(module)["2.weight"]
    load_arrays(module, shared)
    assert np.array_equal(arrays(module)["2.weight"], own)
    assert difference(module, shared).keys() == shared.keys()


def test_tensors_that_the_module_does_not_have_are_named() -> None:
    module = normalised()
    for use in (load_arrays, difference):
        with expect_problem(BAD_TENSORS, "no 9.weight"):
            use(module, {"9.weight": np.zeros(3, np.float32)})
    with expect_problem(BAD_TENSORS, "0.weight"):
        load_arrays(module, {"0.weight": np.zeros((5, 4), np.float32)})


def test_frozen_parameters_are_not_sent_and_take_nothing_of_the_norm() -> None:
    module = classifier()
    inputs, targets = records(7, (5,))
    whole = clipped_gradient_sum(module, classes, inputs, targets, 1e6)
    module[0].requires_grad_(False)  # type: ignore[index]
    assert not {"0.weight", "0.bias"} & arrays(module).keys()
    assert arrays(module).keys() == {spec.name for spec in tensor_specs(module)}
    free = clipped_gradient_sum(module, classes, inputs, targets, 1e6)
    assert free.keys() == arrays(module).keys()
    for name, value in free.items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
    one = clipped_gradient_sum(module, classes, inputs[:1], targets[:1], 1e-3)
    assert norm_of(one) == pytest.approx(1e-3, rel=1e-4)


def test_arrays_are_copies() -> None:
    module = affine()
    taken = arrays(module)
    taken["weight"][:] = 9
    assert module.weight.tolist() == [[1.5, -0.5]]  # type: ignore[operator]


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_a_poisson_sample_has_its_rate(rate: float) -> None:
    count = 50_000
    chosen = poisson_sample(count, rate)
    assert abs(len(chosen) - rate * count) < 6 * np.sqrt(count * rate * (1 - rate))
    assert np.all(np.diff(chosen) > 0)
    assert 0 <= chosen[0] <= chosen[-1] < count
    assert not np.array_equal(chosen, poisson_sample(count, rate))


def test_a_poisson_sample_takes_all_or_none_at_the_ends() -> None:
    assert poisson_sample(100, 1.0).tolist() == list(range(100))
    assert poisson_sample(100, 0.0).tolist() == []
    assert poisson_sample(0, 0.5).tolist() == []


def test_a_poisson_sample_compares_the_top_53_bits() -> None:
    words = np.array([0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1], dtype=np.uint64)
    assert poisson_sample(4, 0.5, lambda count: words[:count]).tolist() == [0, 1]
