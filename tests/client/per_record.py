"""Abadi et al. 2016, algorithm 1, one record at a time with autograd and the module itself: slow, and plainly right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def plain_loop(
    module: nn.Module, loss: Callable[[Any, Any], torch.Tensor], inputs: Any, targets: torch.Tensor, clip: float
) -> dict[str, np.ndarray]:
    """The clipped gradient sum; inputs as `clipped_gradient_sum` takes them."""
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    total = {name: np.zeros(tuple(value.shape)) for name, value in trained.items()}
    for at in range(len(targets)):
        module.zero_grad()
        loss(_output(module, inputs, at), targets[at : at + 1]).backward()
        gradients = {name: _dense(value) for name, value in trained.items()}
        norm = np.sqrt(sum((value**2).sum() for value in gradients.values()))
        for name, value in gradients.items():
            total[name] += value * min(1.0, clip / norm)
    module.zero_grad()
    return total


def norm_of(values: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in values.values())))


def _output(module: nn.Module, inputs: Any, at: int) -> Any:
    if isinstance(inputs, dict):
        return module(**{name: value[at : at + 1] for name, value in inputs.items()})
    if isinstance(inputs, tuple):
        return module(*(value[at : at + 1] for value in inputs))
    return module(inputs[at : at + 1])


def _dense(value: torch.Tensor) -> np.ndarray:
    gradient = torch.zeros_like(value) if value.grad is None else value.grad
    return np.asarray(gradient.to_dense().double().numpy())
