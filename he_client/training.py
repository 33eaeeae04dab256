"""The PyTorch helper: modules as named tensors, and DP-FedSGD's clipped gradient sum.

The only module of the client that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from he_client.encode import Words, secret_words
from he_protocol.task import TensorSpec

Arrays = dict[str, npt.NDArray[np.float32]]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def tensor_specs(module: torch.nn.Module) -> tuple[TensorSpec, ...]:
    """What a task's configuration says about this module's parameters (scalars as shape (1,))."""
    return tuple(TensorSpec(name, tuple(value.shape) or (1,)) for name, value in module.named_parameters())


def arrays(module: torch.nn.Module) -> Arrays:
    """Copies of the module's parameters: float32, by name."""
    return {
        name: value.detach().to(torch.float32).cpu().numpy().reshape(tuple(value.shape) or (1,)).copy()
        for name, value in module.named_parameters()
    }


def load_arrays(module: torch.nn.Module, values: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy named tensors (as `arrays` gives them, or a pulled model) into the module."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values[name])).reshape(parameter.shape))


def difference(after: torch.nn.Module, before: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """The update of local training: parameters after it, less those before."""
    return {name: value - before[name] for name, value in arrays(after).items()}


def poisson_sample(count: int, rate: float, words: Words = secret_words) -> npt.NDArray[np.int64]:
    """Indices of a Poisson sample: each of `count` records independently with probability `rate`.

    The choice must stay secret for subsampling amplification to hold, so it comes from the CSPRNG.
    """
    draws = (words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.flatnonzero(draws < rate)


def clipped_gradient_sum(
    module: torch.nn.Module,
    loss: Loss,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    clip_norm: float,
    *,
    microbatch: int = 64,
) -> Arrays:
    """Sum over records of the gradient of each, scaled to L2 norm <= `clip_norm` (Abadi et al. 2016).

    inputs: (records, ...); `loss(output, target)` is a scalar for one record. Gradients of single
    records come from vmap, `microbatch` at a time. No records give zeros.
    """
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = functional_call(module, (weights, buffers), (x.unsqueeze(0),))
        return loss(output, y.unsqueeze(0))

    per_record = vmap(grad(one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    for start in range(0, len(inputs), microbatch):
        gradients = per_record(parameters, inputs[start : start + microbatch], targets[start : start + microbatch])
        flat = torch.cat([value.reshape(len(value), -1) for value in gradients.values()], dim=1).double()
        factor = (clip_norm / flat.norm(dim=1).clamp_min(1e-12)).clamp(max=1.0)
        for name, value in gradients.items():
            total[name] += torch.einsum("r,r...->...", factor, value.double())
    return {name: value.float().numpy().reshape(tuple(value.shape) or (1,)) for name, value in total.items()}


__all__ = [
    "arrays",
    "clipped_gradient_sum",
    "difference",
    "load_arrays",
    "poisson_sample",
    "tensor_specs",
]
