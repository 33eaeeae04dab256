"""Gradients of single records on layers of many kinds: as the plain loop has them, whichever way they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import embedding, mse_loss

from he_client.training import arrays, clipped_gradient_sum
from tests.client.per_record import norm_of, plain_loop

RECORDS, STEPS, WIDTH = 7, 4, 8

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


class Mean(nn.Module):
    """Over the steps, of what a layer of sequences gives, to one number a record."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x)
        whole: torch.Tensor = self.head((output[0] if isinstance(output, tuple) else output).mean(dim=1))
        return whole


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.attention(x, x, x)


class Tied(nn.Module):
    """The same parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.decoder(torch.tanh(self.encoder(x)))
        return whole.mean(dim=(1, 2), keepdim=True)


class Gain(nn.Module):
    """Has a parameter of shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


class Sparse(nn.Module):
    """An embedding that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return embedding(x, self.weight, sparse=True)


class Branching(nn.Module):
    """Its control flow depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.linear(x)
        return whole if x.sum().item() > 0 else 2 * whole


class Writing(nn.Module):
    """Writes into its input, and into a tensor that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = torch.zeros(1, STEPS, WIDTH)
        written += self.linear(x.mul_(2))
        return written


def sequences() -> torch.Tensor:
    return torch.randn(RECORDS, STEPS, WIDTH)


def images() -> torch.Tensor:
    return torch.randn(RECORDS, 2, 6, 6)


def words() -> torch.Tensor:
    return torch.randint(9, (RECORDS, STEPS))


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    module[0].requires_grad_(False)
    return Mean(module)


TOGETHER: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "Linear": (lambda: Mean(nn.Linear(WIDTH, WIDTH)), sequences),
    "Conv1d": (lambda: Mean(nn.Conv1d(STEPS, 3, 3, padding=1)), sequences),
    "Conv2d": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1)), images),
    "GroupNorm": (lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(72, 1)), images),
    "LayerNorm": (lambda: Mean(nn.LayerNorm(WIDTH)), sequences),
    "BatchNorm with kept statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(2).eval(), nn.Flatten(), nn.Linear(72, 1)),
        images,
    ),
    "InstanceNorm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.Flatten(), nn.Linear(72, 1)),
        images,
    ),
    "Embedding": (lambda: Mean(nn.Embedding(9, WIDTH)), words),
    "sparse Embedding": (lambda: Mean(nn.Embedding(9, WIDTH, sparse=True)), words),
    "MultiheadAttention": (lambda: Mean(Attention()), sequences),
    "TransformerEncoderLayer": (
        lambda: Mean(nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)),
        sequences,
    ),
    "tied weights": (Tied, sequences),
    "frozen parameters": (frozen, sequences),
    "a scalar parameter": (lambda: Mean(nn.Sequential(Gain(), nn.Tanh())), sequences),
}
RECORD_BY_RECORD: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], str]] = {
    "RNN": (lambda: Mean(nn.RNN(WIDTH, WIDTH, batch_first=True)), sequences, "RNN 'layer'"),
    "GRU": (lambda: Mean(nn.GRU(WIDTH, WIDTH, 2, batch_first=True)), sequences, "GRU 'layer'"),
    "sparse": (lambda: Mean(Sparse()), words, "the loss or its gradient"),
    "limited Embedding": (lambda: Mean(nn.Embedding(9, WIDTH, max_norm=0.5)), words, "Embedding 'layer'"),
    "item()": (lambda: Mean(Branching()), sequences, "Branching 'layer'"),
    "in place": (lambda: Mean(Writing()), sequences, "Writing 'layer'"),
}
LSTM = {"LSTM": (lambda: Mean(nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)), sequences)}
"""Done by vmap on some devices, and not on others."""


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return mse_loss(output.reshape(-1), target, reduction="sum")


def compared(module: nn.Module, inputs: Any, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Where all are clipped, and where none is."""
    targets = torch.randn(RECORDS)
    for clip in (0.05, 1e6):
        expected = plain_loop(module, squared, _copy(inputs), targets, clip)
        got = clipped_gradient_sum(module, squared, inputs, targets, clip, microbatch=4, raise_errors=True)
        assert norm_of(got) > 0
        assert got.keys() == expected.keys()
        for name, value in got.items():
            np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=atol, err_msg=name)


def _copy(inputs: Any) -> Any:
    return inputs.clone() if isinstance(inputs, torch.Tensor) else inputs


@pytest.mark.parametrize("kind", [*TOGETHER, *RECORD_BY_RECORD, *LSTM])
def test_any_layer_is_the_loop_over_records(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(5)
    make, data, *where = (TOGETHER | RECORD_BY_RECORD | LSTM)[kind]
    module, inputs = make(), data()
    if "limited" in kind:
        module(inputs)  # PyTorch writes the limit into the weights that it looks up
    before, given = arrays(module), inputs.clone()
    compared(module, inputs)
    assert all(np.array_equal(value, before[name]) for name, value in arrays(module).items())
    assert torch.equal(inputs, given)
    if kind not in LSTM:
        said = [line for line in caplog.messages if "record by record" in line]
        assert [where[0] in line for line in said] == ([True, True] if where else [])


@pytest.mark.parametrize(("kind", "digits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float64, 24)])
def test_parameters_of_any_float(kind: torch.dtype, digits: int) -> None:
    torch.manual_seed(6)
    compared(Mean(nn.Linear(WIDTH, WIDTH)).to(kind), sequences().to(kind), rtol=2.0 ** (2 - digits), atol=2.0**-digits)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, WIDTH), nn.Linear(2 * WIDTH, 1)

    def forward(self, numbers: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.head(torch.cat([numbers, self.words(words)], dim=-1).mean(dim=1))
        return whole


def test_a_module_of_several_inputs() -> None:
    torch.manual_seed(7)
    module, numbers, ids = Joined(), sequences(), words()
    compared(module, (numbers, ids))
    compared(module, {"words": ids, "numbers": numbers})


def test_each_record_has_a_dropout_mask_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """The gradient of a weight of one is the mask."""

    def ones(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return output.sum()

    module = nn.Sequential(Gain(), nn.Dropout(0.5))
    inputs = torch.ones(64, 1)
    halves = [float(clipped_gradient_sum(module, ones, inputs, inputs, 1e6)["0.gain"]) for _ in range(5)]
    assert all(0 < half < 128 for half in halves), "one mask for all: nothing, or twice of all of it"
    assert len(set(halves)) > 1
    assert caplog.messages == []
    module.eval()
    assert clipped_gradient_sum(module, ones, inputs, inputs, 1e6)["0.gain"] == 64
