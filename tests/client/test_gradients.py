"""The rules of the clipped gradient sum: no record changes what another gives, and none stops the sum."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from he_client.training import arrays, clipped_gradient_sum, gradients
from he_protocol.problems import BAD_MODULE, BAD_SETTINGS
from he_testing.problems import expect_problem
from tests.client.per_record import norm_of, plain_loop
from tests.client.test_layers import RECORD_BY_RECORD, RECORDS, TOGETHER, WIDTH, squared, words


class Remembering(nn.Module):
    """Keeps the largest input that it has seen, and computes with it; with `.item()`, vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("most", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.most.fill_(max(self.most.item(), x.max().item()))  # type: ignore[operator]
        return self.weight * torch.as_tensor(self.most)


def test_no_record_sees_what_the_module_wrote_for_another() -> None:
    """Otherwise one record would change the gradients of all that follow."""
    module, inputs = Remembering(), torch.tensor([[100.0], [1.0], [2.0]])
    got = clipped_gradient_sum(module, lambda output, _: output.sum(), inputs, inputs, 1e6)
    assert got["weight"].tolist() == [103.0]
    assert module.most.item() == 0  # type: ignore[operator]


def test_a_sparse_embedding_stays_one_and_of_one_number_too() -> None:
    """PyTorch loses the gradient of a single one when it makes it dense."""
    module, ids = nn.Embedding(5, 1, sparse=True), torch.tensor([3, 1, 3])
    got = clipped_gradient_sum(module, lambda output, _: output.sum(), ids, ids, 1.0)
    assert got["weight"].ravel().tolist() == [0, 1, 0, 2, 0]
    assert module.sparse


@pytest.mark.parametrize("kind", ["Embedding", "sparse"])
def test_a_record_that_fails_counts_as_zero_either_way(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Which way is taken must not decide whether an update comes, nor may what a record does to it."""
    make, data, *_ = (TOGETHER | RECORD_BY_RECORD)[kind]
    module, ids, targets = make(), data(), torch.randn(RECORDS)
    rest = [at for at in range(RECORDS) if at != 3]
    expected = plain_loop(module, squared, ids[rest], targets[rest], 1.0)
    ids[3, 0] = 99
    got = clipped_gradient_sum(module, squared, ids, targets, 1.0)
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert any("1 records count as zero" in line and "index out of range" in line for line in caplog.messages)


@pytest.mark.parametrize("kind", ["Linear", "GRU"])
def test_parameters_without_use_have_a_gradient_of_zero_and_no_grad_changes_nothing(kind: str) -> None:
    make, data, *_ = (TOGETHER | RECORD_BY_RECORD)[kind]
    module, inputs, targets = make(), data(), torch.randn(RECORDS)
    module.register_parameter("idle", nn.Parameter(torch.ones(3)))
    expected = plain_loop(module, squared, inputs, targets, 1.0)
    with torch.no_grad():
        got = clipped_gradient_sum(module, squared, inputs, targets, 1.0, raise_errors=True)
    assert got["idle"].tolist() == [0, 0, 0]
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_a_limited_embedding_is_not_written_to() -> None:
    module, ids = nn.Embedding(9, WIDTH, max_norm=0.5), words()
    before = arrays(module)["weight"]
    assert norm_of(clipped_gradient_sum(module, lambda output, _: output.sum(), ids, ids, 1.0)) > 0
    assert np.array_equal(arrays(module)["weight"], before)


def test_where_the_device_has_no_float64_sums_are_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs. Here the module pretends to be on one."""

    class OnApple(gradients._RecordGradients):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            self.device = torch.device("mps")

        def _moved(self, batch: Any) -> Any:
            return batch

    module, inputs, targets = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5)
    expected = clipped_gradient_sum(module, squared, inputs, targets, 1.0)
    monkeypatch.setattr(gradients, "_RecordGradients", OnApple)
    got = clipped_gradient_sum(module, squared, inputs, targets, 1.0)
    assert all(np.array_equal(value, expected[name]) for name, value in got.items())


@pytest.mark.parametrize(
    "numbers", [{"clip_norm": bad} for bad in (0.0, -1.0, inf, nan)] + [{"microbatch": 0}], ids=str
)
def test_numbers_that_are_none_are_refused(numbers: dict[str, Any]) -> None:
    """A task without DP has a clip_norm of 0, under which every gradient would be zero."""
    about = {"clip_norm": 1.0} | numbers
    with expect_problem(BAD_SETTINGS, next(iter(numbers))):
        clipped_gradient_sum(nn.Linear(3, 1), squared, torch.randn(5, 3), torch.randn(5), **about)


def mixing() -> dict[str, tuple[nn.Module, str]]:
    return {
        "BatchNorm1d": (nn.BatchNorm1d(2), "GroupNorm"),
        "BatchNorm2d": (nn.BatchNorm2d(2), "GroupNorm"),
        "BatchNorm3d": (nn.BatchNorm3d(2), "GroupNorm"),
        "SyncBatchNorm": (nn.SyncBatchNorm(2), "GroupNorm"),
        "frozen": (nn.BatchNorm1d(2).requires_grad_(False), "GroupNorm"),
        "without statistics": (nn.BatchNorm1d(2, track_running_stats=False).eval(), "GroupNorm"),
        "InstanceNorm1d": (nn.InstanceNorm1d(2, track_running_stats=True), "track_running_stats=False"),
    }


@pytest.mark.parametrize("kind", mixing())
def test_layers_that_mix_records_are_refused_by_name(kind: str) -> None:
    layer, instead = mixing()[kind]
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer))
    called = []
    module.register_forward_pre_hook(lambda *_: called.append(1))
    inputs = torch.randn(3, 2)
    with expect_problem(BAD_MODULE, f"{type(layer).__name__} '1.0'"):
        clipped_gradient_sum(module, squared, inputs, inputs, 1.0)
    with expect_problem(BAD_MODULE, instead):
        clipped_gradient_sum(module, squared, inputs[:0], inputs[:0], 1.0)
    assert called == []


class Limiting(nn.Linear):
    """Keeps its weight small, as some networks do at each step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x)


def streamed() -> bool:
    """Whether the module has its weights afterwards."""
    module, inputs = nn.Sequential(nn.Linear(3, 3), Limiting(3, 1)), torch.randn(5, 3)
    before = arrays(module)
    way = gradients.Way("streamed", 1)
    gradients.sum_by(way, module, squared, inputs, torch.randn(5), 1.0, raise_errors=True)
    return all(np.array_equal(value, before[name]) for name, value in arrays(module).items())


def test_no_record_sees_weights_that_the_module_wrote_for_another() -> None:
    """Layers of PyTorch alone write to none, so they get no copy, which is half of what streaming takes."""
    assert streamed()


def test_without_copies_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "writes_weights", lambda _: False)
    assert not streamed()
