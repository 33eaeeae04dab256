"""Ghost clipping: the same sums as gradients of single records give, and norms that are never too small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from he_client.training import Arrays, Way, gradients, rows
from he_client.training.ghost import GhostPass, UnfitError, known_layers, worthwhile
from he_client.training.gradients import Method, sum_by
from tests.client.per_record import norm_of
from tests.client.test_layers import LSTM, RECORD_BY_RECORD, RECORDS, TOGETHER, WIDTH, Mean, images, sequences, words

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


class Twice(nn.Module):
    """Calls one layer twice, on sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.linear(torch.tanh(self.linear(x))[:, :2])
        return whole.mean(dim=(1, 2))


class Beside(nn.Module):
    """Uses the weight of a layer also outside of it, as language models tie their output to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = functional.linear(torch.tanh(self.linear(x)), self.linear.weight)
        return whole.mean(dim=(1, 2))


class Language(nn.Module):
    """An embedding and a layer that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.back, self.head = nn.Linear(4 * WIDTH, WIDTH), nn.Linear(WIDTH, 9)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.head(self.back(torch.tanh(self.middle(self.embedding(x)))))).mean(dim=(1, 2))


class Positions(nn.Module):
    """An embedding whose input is the same for all records, and a layer without a dimension for records."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(9, WIDTH), nn.Embedding(STEPS, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.tanh(self.words(x) + self.places(torch.arange(x.shape[1])))
        whole: torch.Tensor = self.head(mixed[0].mean(dim=0))
        return whole


class Idle(nn.Module):
    """A layer that is called for nothing, one that is not called, and one called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.idle, self.head = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.called(x)
        whole: torch.Tensor = self.head(input=x).mean(dim=(1, 2))
        return whole


STEPS = 4


def convolution(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "MLP": (lambda: Mean(nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH, bias=False))), sequences),
    "Conv1d with all settings": (
        convolution(nn.Conv1d(STEPS, 6, 3, stride=2, padding=2, dilation=2, groups=2)),
        sequences,
    ),
    "Conv2d with all settings": (
        convolution(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)),
        images,
    ),
    "depthwise": (convolution(nn.Conv2d(2, 2, 3, groups=2, bias=False), nn.Conv2d(2, 3, 1)), images),
    "a convolution of many places": (convolution(nn.Conv2d(2, 2, 1)), images),
    "padding by name": (convolution(nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3)), images),
    "circular": (convolution(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 2, 3)), images),
    "Embedding with padding": (lambda: Mean(nn.Embedding(9, WIDTH, padding_idx=3)), words),
    "Embedding of one row": (lambda: Mean(nn.Embedding(9, WIDTH)), lambda: torch.full((RECORDS, STEPS), 2)),
    "called twice": (Twice, sequences),
    "a weight beside its layer": (Beside, sequences),
    "an embedding tied to a layer": (Language, words),
    "the same for all records": (Positions, words),
    "idle": (Idle, sequences),
    "frozen weight": (lambda: _frozen(nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)), sequences),
    "old weight norm": (lambda: Mean(_weight_norm(nn.Linear(WIDTH, WIDTH))), sequences),
    "parametrized": (
        lambda: Mean(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
        sequences,
    ),
    "a hook that changes what comes in": (lambda: _hooked(nn.Linear(WIDTH, WIDTH)), sequences),
    "dropout in eval": (lambda: Mean(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)).eval()), sequences),
}
EVERYTHING = MODULES | TOGETHER | {name: each[:2] for name, each in RECORD_BY_RECORD.items()} | LSTM


def _frozen(first: nn.Module, second: nn.Module) -> nn.Module:
    first.weight.requires_grad_(False)
    return Mean(nn.Sequential(first, nn.Tanh(), second))


def _weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


def _hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    return Mean(layer)


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output.reshape(-1), target, reduction="sum")


def summed(method: Method, module: nn.Module, inputs: Any, targets: Any, clip: float = 1.0, size: int = 4) -> Arrays:
    return sum_by(Way(method, size), module, squared, inputs, targets, clip, raise_errors=True)


def alike(first: Arrays, second: Arrays, digits: float = 1e-5) -> None:
    """Distance relative to the whole: a value in which others cancel has fewer digits."""
    assert first.keys() == second.keys()
    assert norm_of({name: first[name] - second[name] for name in first}) <= digits * norm_of(second)


@pytest.mark.parametrize("kind", EVERYTHING)
def test_all_ways_give_the_same_sum(kind: str) -> None:
    """Where all are clipped, where some are, and where none is."""
    torch.manual_seed(11)
    make, data = EVERYTHING[kind]
    module, inputs, targets = make(), data(), torch.randn(RECORDS)
    module(inputs.clone())  # lazy layers have their shapes
    for clip in (0.05, 1.0, 1e6):
        expected = summed("vmap", module, inputs, targets, clip)
        assert norm_of(expected) > 0
        alike(summed("ghost", module, inputs, targets, clip), expected)
        alike(summed("streamed", module, inputs, targets, clip), expected, 1e-6)
    assert not any("forward" in vars(layer) or parameter.grad is not None for layer in module.modules() for parameter in layer.parameters())
