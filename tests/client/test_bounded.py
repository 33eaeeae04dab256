"""What a record contributes is at most `clip_norm`, whatever the record and the model are, whichever way is taken."""

from __future__ import annotations

from math import inf, nan
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from he_client.training import Arrays, Way, ghost, gradients, rows
from he_client.training.gradients import Method, sum_by
from tests.client.per_record import norm_of
from tests.client.test_ghost import Beside
from tests.client.test_layers import WIDTH

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = get_args(Method)
HOSTILE = [inf, -inf, nan, 3e38, 1e30, 1e20, 1e-38, 1e-45, -0.0]


def product(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """So that the target is the gradient of what goes out."""
    return (output * target).sum()


def moved(whole: Arrays, rest: Arrays) -> float:
    return norm_of({name: whole[name].astype(np.float64) - rest[name] for name in whole})


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Flatten(), nn.Linear(10, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [convolution, sequence])
@pytest.mark.parametrize("value", HOSTILE, ids=str)
def test_a_hostile_record_moves_the_sum_by_at_most_the_norm(method: Method, make: Any, value: float) -> None:
    """And changes nothing of what others give."""
    torch.manual_seed(1)
    module, inputs, targets = make(), torch.randn(6, 2, 6), torch.randint(3, (6,))
    inputs[4, 1, 2] = value
    inputs[4, 0] *= 1e4
    rest = [0, 1, 2, 3, 5]
    way = Way(method, 3)
    whole = sum_by(way, module, cross_entropy, inputs, targets, 0.5, raise_errors=False)
    without = sum_by(way, module, cross_entropy, inputs[rest], targets[rest], 0.5, raise_errors=False)
    assert moved(whole, without) <= 0.5 * (1 + 1e-5)
    assert norm_of(without) > 0.5


FLOATS = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.0**40, -(2.0**40), 1 + 2.0**-14, -1 - 2.0**-13])


@settings(max_examples=60, deadline=None)
@given(st.lists(FLOATS, min_size=12, max_size=12), st.lists(FLOATS, min_size=12, max_size=12))
def test_so_does_whatever_comes_in_and_back(a: list[float], g: list[float]) -> None:
    inputs, targets = torch.tensor(a).reshape(1, 3, 4), torch.tensor(g).reshape(1, 3, 4)
    for module in (nn.Linear(4, 4, bias=False), nn.Linear(4, 4)):
        for method in METHODS:
            found = sum_by(Way(method, 1), module, product, inputs, targets, 1.0, raise_errors=False)
            assert norm_of(found) <= 1 + 1e-6


def cancelling() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Two steps whose products are 2^80 and cancel but for 2^52: of the norm's terms rounding leaves nothing."""
    small = 2.0**-14
    inputs, targets = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    inputs[0, :, 0] = 2.0**40 * torch.tensor([1 + small, 1.0])
    targets[0, :, 0] = 2.0**40 * torch.tensor([1 + small, -(1 + 2 * small)])
    return nn.Linear(4, 4, bias=False), inputs, targets


def test_rows_that_cancel_do_not_hide_a_norm() -> None:
    module, inputs, targets = cancelling()
    assert norm_of(sum_by(Way("ghost", 1), module, product, inputs, targets, 1.0, raise_errors=True)) <= 1


def test_without_the_margin_they_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_margin", lambda lengths, _: torch.zeros(len(lengths)))
    module, inputs, targets = cancelling()
    found = norm_of(sum_by(Way("ghost", 1), module, product, inputs, targets, 1.0, raise_errors=True))
    assert found == 2.0**52


def beside() -> Arrays:
    """Both uses of the weight pull in one direction."""
    module, inputs = Beside(), torch.ones(1, 1, WIDTH)
    nn.init.constant_(module.linear.weight, 0.1)
    nn.init.zeros_(module.linear.bias)
    return sum_by(Way("ghost", 1), module, lambda output, _: 1e3 * output.sum(), inputs, inputs, 1.0, raise_errors=True)


def test_what_a_weight_does_outside_of_its_layer_is_in_the_norm() -> None:
    assert norm_of(beside()) == pytest.approx(1)


def test_without_the_refusal_it_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "_refuse_beside", lambda *_: None)
    assert norm_of(beside()) > 1.1


def raising(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Raises for a class that is not there."""
    return 1e20 * cross_entropy(output, target)


def steep(both: bool) -> Arrays:
    """A record whose gradient is 1e40, and one on which the loss raises."""
    module = nn.Linear(2, 2, bias=False)
    inputs, targets = torch.tensor([[1e20, 0.0], [1.0, 0.0]]), torch.tensor([0, 7])
    nn.init.zeros_(module.weight)
    count = 2 if both else 1
    return sum_by(Way("ghost", 2), module, raising, inputs[:count], targets[:count], 1.0, raise_errors=False)


def test_a_record_that_raises_changes_nothing_of_another_whose_gradient_overflows() -> None:
    """Records are then taken one by one: a gradient that overflows in that way must be zero in the other, too."""
    assert moved(steep(True), steep(False)) == 0


def test_without_the_largest_norm_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that counts as zero would still move the sum by the norm, for each of its neighbours."""
    monkeypatch.setattr(gradients, "LARGEST", 1e300)
    assert moved(steep(True), steep(False)) == pytest.approx(1)


class Mixing(nn.Module):
    """Shows each record the mean of its batch, as a layer of one's own might."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.linear(x + x.mean(dim=0, keepdim=True) * len(x))
        return whole


@pytest.mark.parametrize("method", METHODS)
def test_a_module_sees_batches_of_one_record_only(method: Method) -> None:
    torch.manual_seed(3)
    module, inputs, targets = Mixing(), torch.randn(5, 4), torch.randn(5, 4)
    apart = [
        sum_by(Way(method, 5), module, product, inputs[at : at + 1], targets[at : at + 1], 0.5, raise_errors=True)
        for at in range(5)
    ]
    whole = sum_by(Way(method, 5), module, product, inputs, targets, 0.5, raise_errors=True)
    for name, value in whole.items():
        np.testing.assert_allclose(value, sum(each[name] for each in apart), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_norm_and_sum_are_of_one_dropout_mask(method: Method) -> None:
    """Otherwise a record that is clipped would not have the norm that it was clipped to."""
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 8), nn.Dropout(0.5))
    inputs, targets = torch.randn(1, 8), torch.randn(1, 8)
    sums = [sum_by(Way(method, 4), module, product, inputs, targets, 0.01, raise_errors=True) for _ in range(8)]
    assert [norm_of(each) for each in sums] == pytest.approx([0.01] * 8, rel=1e-5)
    assert len({each["0.weight"].tobytes() for each in sums}) == 8
