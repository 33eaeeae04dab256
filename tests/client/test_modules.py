"""Modules as named tensors: wrapped, tied, frozen, of other types, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.functional import mse_loss

from he_client.training import arrays, clipped_gradient_sum, difference, load_arrays, tensor_specs
from he_protocol.problems import BAD_MODULE, BAD_TENSORS
from he_testing.problems import expect_problem
from tests.client.per_record import norm_of

INPUTS, TARGETS = torch.randn(5, 3), torch.randn(5, 2)


def compiled(module: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(module, backend="eager")  # type: ignore[assignment]
    return wrapped


def inside(module: nn.Module) -> nn.Module:
    """Compiles one layer of it, as for large models."""
    module[0] = compiled(module[0])  # type: ignore[index, operator]
    return module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel of compile": lambda module: nn.DataParallel(compiled(module)),
    "compile of DistributedDataParallel": lambda module: compiled(nn.parallel.DistributedDataParallel(module)),
    "compile of a layer": inside,
    "DataParallel of compile of a layer": lambda module: nn.DataParallel(inside(module)),
}


@pytest.fixture(autouse=True, scope="module")
def _alone() -> Iterator[None]:
    """A process group of one, which DistributedDataParallel asks for."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def network() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 2))


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return mse_loss(output, target)


@pytest.mark.parametrize("how", WRAPPERS)
def test_a_wrapped_module_has_the_tensors_of_the_plain_one(how: str) -> None:
    plain = network()
    expected = clipped_gradient_sum(plain, squared, INPUTS, TARGETS, 0.5)
    specs, before = tensor_specs(plain, buffers=True), arrays(plain, buffers=True)
    wrapped = WRAPPERS[how](plain)
    assert tensor_specs(wrapped, buffers=True) == specs
    got = clipped_gradient_sum(wrapped, squared, INPUTS, TARGETS, 0.5)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)
    load_arrays(wrapped, {name: value + np.float32(1) for name, value in before.items()})
    moved = difference(wrapped, before)
    assert list(moved) == list(arrays(wrapped, buffers=True)) == list(before)
    assert all(np.allclose(value, 1, atol=1e-6) for value in moved.values())


def test_a_layer_that_is_called_as_a_wrapper_calls_its_own_stays_in_the_name() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert arrays(Holder()).keys() == {"module.weight", "module.bias"}


def tied() -> nn.Module:
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2, bias=False), "decoder": nn.Linear(2, 2, bias=False)})
    module["decoder"].weight = module["encoder"].weight
    return module


def test_a_tied_parameter_travels_once_and_answers_to_each_name() -> None:
    """A task that was made of a state_dict may have it under the other one, or under both."""
    module = tied()
    (name,) = arrays(module)
    assert name == "encoder.weight"
    for names in (["encoder.weight"], ["decoder.weight"], ["encoder.weight", "decoder.weight"]):
        load_arrays(module, {one: np.full((2, 2), 3, np.float32) for one in names})
        assert arrays(module)["encoder.weight"].tolist() == [[3, 3], [3, 3]]
        moved = difference(module, {one: np.ones((2, 2), np.float32) for one in names})
        assert {one: value.tolist() for one, value in moved.items()} == {one: [[2, 2], [2, 2]] for one in names}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_modules_of_any_float_travel_as_float32(kind: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(kind)
    model = {name: np.full(value.shape, 0.1, np.float32) for name, value in arrays(module).items()}
    load_arrays(module, model)
    assert module.weight.dtype == kind
    moved = difference(module, model)
    assert all(value.dtype == np.float32 and not value.any() for value in moved.values()), "what few bits lost"
    with torch.no_grad():
        module.weight += 0.25
    assert np.allclose(difference(module, model)["weight"], 0.25, rtol=1e-2)


def frozen() -> nn.Module:
    return network().requires_grad_(False)


def complex_numbers() -> nn.Module:
    return nn.Linear(2, 2, dtype=torch.complex64)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "without parameters": (nn.ReLU, "trains nothing"),
    "frozen": (frozen, "6 frozen parameters"),
    "lazy": (lambda: nn.LazyLinear(2), "parameter 'weight' has no shape yet"),
    "complex": (complex_numbers, "real numbers"),
    "without values": (lambda: nn.Linear(3, 2, device="meta"), "'weight' has no values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_modules_that_cannot_train_are_refused(kind: str) -> None:
    make, why = REFUSED[kind]
    with expect_problem(BAD_MODULE, why):
        arrays(make(), buffers=True)
    with expect_problem(BAD_MODULE, why):
        clipped_gradient_sum(make(), squared, INPUTS, TARGETS, 1.0)


def test_a_module_without_values_has_specifications_all_the_same() -> None:
    assert [spec.shape for spec in tensor_specs(nn.Linear(3, 2, device="meta"))] == [(2, 3), (2,)]


def test_records_go_to_the_modules_device() -> None:
    """'meta' is a device that every machine has; it keeps no values."""
    seen = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.device.type)
            return super().forward(x)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target.device.type)
        return squared(output, target)

    with expect_problem(BAD_MODULE, "no values"):
        clipped_gradient_sum(Watching(3, 2, device="meta"), loss, INPUTS, TARGETS, 1.0)
    assert len(seen) > 1
    assert set(seen) == {"meta"}


@pytest.mark.parametrize("count", [1, 5])
def test_lists_tuples_and_dicts_of_tensors_are_records(count: int) -> None:
    """Targets, too, and in any nest."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, first: torch.Tensor, more: dict[str, tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
            return {"sum": self.linear(first + more["second"][0])}

    def loss(output: dict[str, torch.Tensor], target: dict[str, tuple[torch.Tensor, ...]]) -> torch.Tensor:
        return squared(output["sum"], target["wanted"][0] + target["wanted"][1])

    module, half = Pair(), INPUTS[:count] / 2
    plain = clipped_gradient_sum(module.linear, squared, INPUTS[:count], TARGETS[:count], 0.5)
    targets = {"wanted": [TARGETS[:count] / 4, TARGETS[:count] * 3 / 4]}
    nests: list[Any] = [[half, {"second": [half]}], {"more": {"second": (half,)}, "first": half}]
    for inputs in nests:
        got = clipped_gradient_sum(module, loss, inputs, targets, 0.5, microbatch=2, raise_errors=True)
        assert norm_of(got) > 0
        for name, value in got.items():
            np.testing.assert_allclose(value, plain[name.removeprefix("linear.")], atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "targets", "why"),
    [
        (INPUTS, TARGETS[:4], "5 in inputs, 4 in targets"),
        ((INPUTS, INPUTS[:2]), TARGETS, "2 in inputs[1]"),
        ({"x": INPUTS, "mask": INPUTS[:2]}, TARGETS, "2 in inputs['mask']"),
        (INPUTS, {"a": TARGETS, "b": [TARGETS[:1]]}, "1 in targets['b'][0]"),
        ((), TARGETS, "hold no tensor"),
        ({}, TARGETS, "hold no tensor"),
        (INPUTS.numpy(), TARGETS, "inputs (expected a tensor, got ndarray)"),
        ((INPUTS, None), TARGETS, "inputs[1] (expected a tensor, got NoneType)"),
        (INPUTS, 3, "targets (expected a tensor, got int)"),
        (torch.tensor(1.0), TARGETS, "a scalar"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_do_not_fit_together_are_refused(inputs: object, targets: object, why: str) -> None:
    with expect_problem(BAD_TENSORS, why):
        clipped_gradient_sum(nn.Linear(3, 2), squared, inputs, targets, 1.0)  # type: ignore[arg-type]
