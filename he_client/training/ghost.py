"""Ghost clipping: norms of single records' gradients without most of those gradients in memory.

The module runs under vmap on batches of one record, so that no record can see another, whatever the module does. A tap
behind each known layer keeps what came in, and in the backward pass the gradient of what went out; `rows` makes norms
and the sum of both. All other parameters (biases, normalisation) are spread over the records and have gradients
of single records. So a known weight that the module also uses in another way is found: there it has a gradient.
ADR 31 says why this is not taken from a library.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import vmap

from he_client.training.modules import Weights, trained
from he_client.training.rows import Call, groups_of, known, output_of

LossOf = Callable[[Weights, Weights, Any, Any], torch.Tensor]
"""Of the trained weights, the buffers, one record and its target."""


class UnfitError(Exception):
    """The module does what the taps do not see; its gradients have to be taken in another way."""


class Found:
    """What one pass found: gradients of single records, and for known weights the calls of their layers."""

    def __init__(self, gradients: Weights, calls: dict[str, list[Call]]) -> None:
        self.gradients, self.calls = gradients, calls


def known_layers(module: nn.Module) -> dict[str, list[nn.Module]]:
    """By the names of trained weights: the layers that use each, where all of them are known, and of one kind."""
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for layer in module.modules():
        for attribute, parameter in layer._parameters.items():
            owners[id(parameter)].append((attribute, layer))
    found = {}
    for name, value in trained(module).items():
        own = owners[id(value)]
        alike = len({(type(layer), groups_of(layer)) for _, layer in own if known(layer)}) == 1
        if alike and all(attribute == "weight" and known(layer) for attribute, layer in own):
            found[name] = [layer for _, layer in own]
    return found


def worthwhile(module: nn.Module) -> bool:
    """Whether known layers have at least half of what is trained, in numbers whose squares float64 can hold."""
    values = trained(module)
    if any(value.dtype not in {torch.float32, torch.bfloat16} for value in values.values()):
        return False
    return 2 * sum(values[name].numel() for name in known_layers(module)) >= sum(map(torch.numel, values.values()))


class GhostPass:
    """One forward and one backward pass over some records."""

    def __init__(self, module: nn.Module, loss_of: LossOf, weights: Weights) -> None:
        self._layers, self._loss_of, self._weights = known_layers(module), loss_of, weights
        self._anchor = torch.zeros(0)
        self._calls: dict[str, list[Call]] = {name: [] for name in self._layers}
        self.backward = False

    def run(self, buffers: Weights, inputs: Any, targets: Any, count: int) -> Found:
        """Raises `UnfitError`, and whatever vmap, module or loss raise."""
        device = next(iter(self._weights.values())).device
        anchor = torch.zeros(count, device=device, requires_grad=True)
        spread = {name: value.expand(count, *value.shape).requires_grad_() for name, value in self._weights.items()}
        with torch.enable_grad(), self._tapped():
            together = vmap(self._loss, in_dims=(0, 0, None, 0, 0), randomness="different")
            losses = together(anchor, spread, buffers, inputs, targets)
            if losses.dim() != 1:
                raise ValueError(f"a loss of shape {tuple(losses.shape[1:])}, where a scalar is expected")
            self.backward = True
            wanted = [anchor, *spread.values()]
            _, *found = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
        gradients = {name: value for name, value in zip(spread, found, strict=True) if value is not None}
        _refuse_beside(gradients, self._layers)
        used = {name: [call for call in calls if call.gradient is not None] for name, calls in self._calls.items()}
        return Found(gradients, {name: calls for name, calls in used.items() if calls})

    def _loss(self, anchor: torch.Tensor, spread: Weights, buffers: Weights, record: Any, target: Any) -> torch.Tensor:
        self._anchor = anchor
        return self._loss_of(spread, buffers, record, target)

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Within this, known layers compute with weights that need no gradient, and have a tap behind them."""
        layers = [(name, layer) for name, layers in self._layers.items() for layer in layers]
        try:
            for name, layer in layers:
                layer.forward = partial(self._forward, name, layer)
            yield
        finally:
            for _, layer in layers:
                vars(layer).pop("forward", None)

    def _forward(self, name: str, layer: nn.Module, *args: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        (inputs,) = (*args, *named.values())
        call = Call(layer)
        self._calls[name].append(call)
        found = _tapped(output_of(layer, inputs, self._weights[name]), self._anchor, inputs.detach(), call, self)
        bias = layer._parameters.get("bias")
        if bias is None:
            return found
        places = len(layer.kernel_size) if isinstance(layer, nn.Conv1d | nn.Conv2d) else 0
        return found + bias.reshape(-1, *[1] * places)


def _refuse_beside(gradients: Weights, layers: dict[str, list[nn.Module]]) -> None:
    """What a weight does outside of its layers is not in the norm that their taps give."""
    if beside := gradients.keys() & layers.keys():
        raise UnfitError(f"{min(beside)!r} is used outside of its layers, too")


class _Tap(torch.autograd.Function):
    """Gives on what a layer computed. The anchor makes it need a gradient, and spreads it over the records."""

    @staticmethod
    def forward(
        output: torch.Tensor, anchor: torch.Tensor, inputs: torch.Tensor | None, call: Call, run: GhostPass
    ) -> torch.Tensor:
        return output.detach()  # a view could not be written into by what follows

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        *_, ctx.call, ctx.run = inputs

    @staticmethod
    def vmap(info: Any, in_dims: Any, output: Any, anchor: Any, inputs: Any, call: Call, run: GhostPass) -> Any:
        if in_dims[1] is None or call.inputs is not None:
            raise UnfitError("the module has a vmap of its own")
        call.inputs = _records_first(inputs, in_dims[2], info.batch_size)
        return _tapped(_records_first(output, in_dims[0], info.batch_size), anchor, None, call, run), 0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        call: Call = ctx.call
        if call.gradient is not None or not ctx.run.backward:
            raise UnfitError("the module takes gradients of its own")
        call.gradient = gradient
        return gradient, None, None, None, None


def _tapped(
    output: torch.Tensor, anchor: torch.Tensor, inputs: torch.Tensor | None, call: Call, run: GhostPass
) -> torch.Tensor:
    found: torch.Tensor = _Tap.apply(output, anchor, inputs, call, run)  # type: ignore[no-untyped-call]
    return found


def _records_first(value: torch.Tensor, dim: int | None, count: int) -> torch.Tensor:
    """What is the same for all records is spread over them."""
    return value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)
