"""What single records contribute to a weight, from what its layers saw: norms, and the weighted sum, in float64.

The gradient that one record gives a weight is the sum over rows t (steps of a sequence, places of an image, calls of
the layer) of g_t a_t^T: a is what comes in, g the gradient of what goes out. So its squared norm is the sum over t, s
of (a_t.a_s)(g_t.g_s) (Goodfellow 2015; Li et al. 2022), and the weighted sum over records is one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn
from torch.nn import functional

NUMBERS = 2**16
"""How many float64 numbers of one kind are made at a time."""


@dataclass
class Call:
    """One call of a layer: what each record put in, and the gradient of what came out; first dimension the records."""

    layer: nn.Module
    inputs: torch.Tensor | None = None
    gradient: torch.Tensor | None = None


def known(layer: nn.Module) -> bool:
    """Whether what this layer does with its weight is a product of rows, exactly.

    Subclasses are not: they may do anything. Nor is what changes the weight, or counts over a batch.
    """
    if "forward" in vars(layer):
        return False
    if type(layer) in {nn.Conv1d, nn.Conv2d}:
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if type(layer) is nn.Embedding:
        return layer.max_norm is None and not layer.scale_grad_by_freq
    return type(layer) is nn.Linear


def groups_of(layer: nn.Module) -> int:
    """Of a convolution; other layers are one."""
    groups = getattr(layer, "groups", 1)
    assert isinstance(groups, int)
    return groups


def output_of(layer: nn.Module, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a known layer computes of its weight, without its bias."""
    if isinstance(layer, nn.Conv1d):
        return functional.conv1d(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(inputs, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return (
        functional.embedding(inputs, weight) if isinstance(layer, nn.Embedding) else functional.linear(inputs, weight)
    )


def squares(calls: list[Call], where: torch.device) -> torch.Tensor:
    """Of each record the squared norm of its gradient, never too small: float64, of shape (records,)."""
    return torch.cat([_squares(*_rows(calls, some, where)) for some in _pieces(calls, where)])


def add(total: torch.Tensor, calls: list[Call], factor: torch.Tensor) -> None:
    """Adds each record's gradient times its factor to the weight's float64 sum, in place. A factor of 0 adds nothing,
    whatever the record.
    """
    for call in calls:
        for some in _pieces([call], total.device):
            inputs, gradient = _rows([call], some, total.device)
            chosen = factor[some, None, None, None]
            gradient = torch.where(chosen > 0, gradient * chosen, 0.0)
            if isinstance(call.layer, nn.Embedding):
                total.index_add_(0, inputs.flatten(), gradient.flatten(0, 2))
            else:
                rows = torch.where(chosen > 0, inputs, 0.0).transpose(0, 1).flatten(1, 2)
                whole = total.view(gradient.shape[1], gradient.shape[3], rows.shape[2])
                whole.baddbmm_(gradient.transpose(0, 1).flatten(1, 2).mT, rows)


def _pieces(calls: list[Call], where: torch.device) -> Iterator[slice]:
    """Of the records, as many at a time as make no intermediate of more than about `NUMBERS` numbers."""
    count = len(_inputs(calls[0]))
    inputs, gradient = _rows(calls, slice(0, 1), where)
    rows, wide, narrow = *gradient.shape[2:], inputs.shape[3]
    step = max(1, NUMBERS // (gradient.shape[1] * max(rows * max(wide, narrow), min(rows * rows, wide * narrow))))
    yield from (slice(at, at + step) for at in range(0, count, step))


def _squares(inputs: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Of rows as `_rows` gives them."""
    steps, wide = gradient.shape[2:]
    integers = not inputs.is_floating_point()  # of an embedding: rows of the unit matrix
    if steps == 1:
        return (gradient.square().sum(3) * (1.0 if integers else inputs.square().sum(3))).sum((1, 2))
    if integers or steps * steps < wide * inputs.shape[3]:
        like = (inputs.mT == inputs).double() if integers else inputs @ inputs.mT
        found = (like * (gradient @ gradient.mT)).sum((1, 2, 3))
        roundings = steps * steps + wide + inputs.shape[3] + 8
    else:
        found = torch.matmul(gradient.mT, inputs).square().sum((1, 2, 3))
        roundings = 2 * steps + wide * inputs.shape[3] + 8
    lengths = gradient.norm(dim=3) * (1.0 if integers else inputs.norm(dim=3))
    return torch.add(found.clamp_min(0.0), _margin(lengths, roundings))


def _margin(lengths: torch.Tensor, roundings: int) -> torch.Tensor:
    """What rounding can take of a squared norm, from the rows' own norms (Higham 2002, (3.5)).

    Rows may cancel, and then rounding is large beside the norm: a norm that is too small would let the record
    contribute more than it may. Of rows that do not cancel this is some 1e-12.
    """
    return roundings * torch.finfo(torch.float64).eps * lengths.sum(2).square().sum(1)


def _rows(calls: list[Call], some: slice, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What came in, of shape (records, groups, rows, inputs of a group), and the gradient, (..., outputs of a group).
    Of embeddings what came in are ids, of shape (records, 1, rows, 1).
    """
    pairs = [_rows_of(call, some, where) for call in calls]
    return torch.cat([a for a, _ in pairs], dim=2), torch.cat([g for _, g in pairs], dim=2)


def _rows_of(call: Call, some: slice, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    assert call.gradient is not None
    inputs, gradient = _inputs(call)[some].to(where), call.gradient[some].to(where).double()
    layer, count = call.layer, len(inputs)
    if isinstance(layer, nn.Embedding):
        ids, gradient = inputs.reshape(count, 1, -1, 1), gradient.reshape(count, 1, -1, gradient.shape[-1])
        if layer.padding_idx is not None:
            gradient = torch.where(ids == layer.padding_idx, 0.0, gradient)
        return ids, gradient
    inputs = inputs.double()
    if isinstance(layer, nn.Linear):
        return inputs.reshape(count, 1, -1, inputs.shape[-1]), gradient.reshape(count, 1, -1, gradient.shape[-1])
    return _patches(layer, inputs), _places(layer, gradient)


def _patches(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a convolution multiplies with its kernel, place by place."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    images = inputs.reshape(-1, layer.in_channels, *inputs.shape[-len(layer.kernel_size) :])
    padding = tuple(int(each) for each in layer.padding)
    settings = (layer.kernel_size, layer.dilation, padding, layer.stride)
    if isinstance(layer, nn.Conv1d):  # images of a single line
        images = images.unsqueeze(2)
        settings = ((1, *settings[0]), (1, *settings[1]), (0, *settings[2]), (1, *settings[3]))
    patches = functional.unfold(images, *settings)  # (records * images, channels * kernel, places)
    apart = patches.reshape(len(inputs), -1, layer.groups, patches.shape[1] // layer.groups, patches.shape[2])
    return apart.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _places(layer: nn.Module, gradient: torch.Tensor) -> torch.Tensor:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    places = prod(gradient.shape[-len(layer.kernel_size) :])
    apart = gradient.reshape(len(gradient), -1, layer.groups, layer.out_channels // layer.groups, places)
    return apart.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _inputs(call: Call) -> torch.Tensor:
    assert call.inputs is not None, "it was called under vmap"
    return call.inputs
