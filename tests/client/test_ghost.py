"""Ghost clipping: the same sums as gradients of single records give, and norms that are never too small."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from he_client.training import Arrays, Way, gradients, rows
from he_client.training.ghost import known_layers, worthwhile
from he_client.training.gradients import Method, fastest, sum_by
from tests.client.per_record import norm_of
from tests.client.test_layers import (
    LSTM,
    RECORD_BY_RECORD,
    RECORDS,
    TOGETHER,
    WIDTH,
    Joined,
    Mean,
    images,
    sequences,
    words,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]


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


def convolution(make: Callable[[], tuple[nn.Module, ...]]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "MLP": (lambda: Mean(nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WIDTH, bias=False))), sequences),
    "Conv1d with all settings": (
        convolution(lambda: (nn.Conv1d(STEPS, 6, 3, stride=2, padding=2, dilation=2, groups=2),)),
        sequences,
    ),
    "Conv2d with all settings": (
        convolution(lambda: (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),)),
        images,
    ),
    "depthwise": (
        convolution(
            lambda: (
                nn.Conv2d(2, 2, 3, groups=2, bias=False),
                nn.Conv2d(2, 3, 1),
            )
        ),
        images,
    ),
    "a convolution of many places": (convolution(lambda: (nn.Conv2d(2, 2, 1),)), images),
    "padding by name": (
        convolution(
            lambda: (
                nn.Conv2d(2, 2, 3, padding="same"),
                nn.Conv2d(2, 2, 3),
            )
        ),
        images,
    ),
    "circular": (
        convolution(
            lambda: (
                nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
                nn.Conv2d(2, 2, 3),
            )
        ),
        images,
    ),
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
    module(inputs[:1].clone())  # lazy layers have their shapes
    for clip in (0.05, 1.0, 1e6):
        expected = summed("vmap", module, inputs, targets, clip)
        assert norm_of(expected) > 0
        alike(summed("ghost", module, inputs, targets, clip), expected)
        alike(summed("streamed", module, inputs, targets, clip), expected, 4e-6)
    assert not any("forward" in vars(layer) for layer in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


GHOST = ["MLP", "Conv1d with all settings", "Conv2d with all settings", "depthwise", "Embedding with padding",
         "called twice", "an embedding tied to a layer", "the same for all records", "idle", "dropout in eval",
         "Linear", "Conv1d", "Embedding", "sparse Embedding",
         "tied weights", "a hook that changes what comes in"]  # fmt: skip


@pytest.mark.parametrize("kind", GHOST)
def test_the_fast_way_is_taken_where_it_can_be(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the tests of its sums would compare the slower ways with themselves."""
    torch.manual_seed(12)
    make, data = EVERYTHING[kind]
    module, inputs, targets = make(), data(), torch.randn(RECORDS)
    module(inputs[:1].clone())
    assert worthwhile(module)
    monkeypatch.delattr(gradients._RecordGradients, "together")
    monkeypatch.delattr(gradients._RecordGradients, "alone")
    assert norm_of(summed("ghost", module, inputs, targets)) > 0


@pytest.mark.parametrize(
    "kind", ["circular", "padding by name", "parametrized", "old weight norm", "limited Embedding"]
)
def test_layers_that_do_something_else_are_none_that_are_known(kind: str) -> None:
    module = EVERYTHING[kind][0]()
    module(EVERYTHING[kind][1]()[:1])
    names = known_layers(module)
    assert not any(name.startswith(("0.", "layer.")) for name in names)


def test_a_subclass_and_a_forward_of_its_own_are_not_known() -> None:
    class Double(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    changed = nn.Linear(2, 2)
    changed.forward = lambda x: x @ changed.weight.T * 2  # type: ignore[method-assign, assignment]
    assert known_layers(nn.Sequential(Double(2, 2), changed, nn.Linear(2, 2))).keys() == {"2.weight"}


def test_small_convolutions_alone_are_quicker_by_single_gradients() -> None:
    small, large = (nn.Sequential(nn.Conv1d(8, size, 5), nn.Flatten(), nn.Linear(4, 2)) for size in (8, 9000))
    assert fastest(small).method == "vmap"
    assert fastest(large).method == "ghost"
    assert fastest(nn.Linear(2, 2)).method == "ghost"
    assert fastest(nn.GRU(2, 2)).method == "vmap"


def test_float64_and_float16_go_the_slower_way() -> None:
    """The squares of their numbers, or the numbers themselves, overflow in one way and not in the other."""
    assert not worthwhile(nn.Linear(2, 2).double())
    assert not worthwhile(nn.Linear(2, 2).half())
    assert worthwhile(nn.Linear(2, 2).bfloat16())


def test_small_pieces_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(13)
    module, inputs, targets = EVERYTHING["called twice"][0](), sequences(), torch.randn(RECORDS)
    expected = summed("ghost", module, inputs, targets)
    monkeypatch.setattr(rows, "NUMBERS", 1)
    for method in ("ghost", "vmap"):
        alike(summed(method, module, inputs, targets), expected, 1e-6)  # type: ignore[arg-type]


def test_several_inputs_by_place_and_by_name() -> None:
    torch.manual_seed(14)
    module, numbers, ids, targets = Joined(), sequences(), words(), torch.randn(RECORDS)
    expected = summed("streamed", module, (numbers, ids), targets)
    alike(summed("ghost", module, (numbers, ids), targets), expected)
    alike(summed("ghost", module, {"words": ids, "numbers": numbers}, targets), expected)


def test_what_follows_a_layer_may_write_into_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(15)
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(inplace=True), nn.Linear(WIDTH, 1))
    inputs, targets = torch.randn(RECORDS, WIDTH), torch.randn(RECORDS)
    expected = summed("streamed", module, inputs, targets)
    monkeypatch.delattr(gradients._RecordGradients, "together")
    monkeypatch.delattr(gradients._RecordGradients, "alone")
    alike(summed("ghost", module, inputs, targets), expected)


def test_a_checkpointed_layer_gives_the_same_sum() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner: torch.Tensor = checkpoint(self.first, x, use_reentrant=False)  # type: ignore[no-untyped-call]
            whole: torch.Tensor = self.second(torch.tanh(inner))
            return whole

    torch.manual_seed(16)
    module, inputs, targets = Checkpointed(), torch.randn(RECORDS, WIDTH), torch.randn(RECORDS)
    alike(summed("ghost", module, inputs, targets), summed("streamed", module, inputs, targets))


class Energy(nn.Module):
    """Gives the gradient of a network by its input, as models of molecules do."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(WIDTH, 1), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(lambda y: torch.tanh(self.linear(y)).sum(), x).sum(dim=1)


def _by_autograd(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(function(x), x, create_graph=True)[0]


def _by_vmap(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return torch.func.vmap(function)(x.reshape(2, -1)[:, None].repeat(1, 1, 2)).unsqueeze(0)


@pytest.mark.parametrize(
    "inner", [_by_autograd, lambda f, x: torch.func.grad(f)(x), _by_vmap], ids=["autograd", "func", "vmap"]
)
def test_a_module_with_gradients_or_a_vmap_of_its_own(inner: Callable[..., Any]) -> None:
    """Their taps would see another gradient than the loss's, or dimensions that are not the records."""
    torch.manual_seed(17)
    module, inputs, targets = Energy(inner), torch.randn(RECORDS, WIDTH), torch.randn(RECORDS)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output.sum() - target.sum()) ** 2

    expected = sum_by(Way("streamed", 1), module, loss, inputs, targets, 1.0, raise_errors=True)
    assert norm_of(expected) > 0
    alike(sum_by(Way("ghost", 4), module, loss, inputs, targets, 1.0, raise_errors=True), expected)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_convolutions_of_any_settings(data: st.DataObject) -> None:
    number = partial(data.draw, st.integers(1, 3))
    groups, flat = number(), data.draw(st.booleans())
    kind: Any = nn.Conv1d if flat else nn.Conv2d
    length = 1 if flat else 2
    kernel, stride, padding, dilation = (tuple(number() for _ in range(length)) for _ in range(4))
    layer = kind(
        groups * number(), groups * number(), kernel, stride, padding, dilation, groups, bias=data.draw(st.booleans())
    )
    inputs, targets = torch.randn(3, layer.in_channels, *[8] * length), torch.randn(3)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(output).sum() - target.sum()) ** 2

    expected = sum_by(Way("streamed", 1), layer, loss, inputs, targets, 1.0, raise_errors=True)
    alike(sum_by(Way("ghost", 2), layer, loss, inputs, targets, 1.0, raise_errors=True), expected)
