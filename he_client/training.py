"""The PyTorch helper: modules as named tensors, and DP-FedSGD's clipped gradient sum.

The only module of the client that imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from he_client.quantise import Words, secret_words
from he_protocol.config import TensorSpec

log = logging.getLogger("he-client")

Arrays = dict[str, npt.NDArray[np.float32]]
Weights = dict[str, torch.Tensor]
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
    with np.errstate(all="ignore"):  # the encoder judges what is not finite
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
    raise_errors: bool = False,
) -> Arrays:
    """Sum over records of the gradient of each, scaled to L2 norm <= `clip_norm` (Abadi et al. 2016).

    inputs: (records, ...); `loss(output, target)` is a scalar for one record. Gradients of single
    records come from vmap, `microbatch` at a time. No records give zeros.

    What a record can do must be bounded whatever it is: one with a gradient that is not finite, or on which model or
    loss raise, counts as zero, which is said in the local log only. Otherwise a model of the server's choice finds out
    such a client by its silence. `raise_errors` is for trying a model out, on data that is public.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def one(weights: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = functional_call(module, (weights, buffers), (x.unsqueeze(0),))
        return loss(output, y.unsqueeze(0))

    per_record = vmap(grad(one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}

    def add(start: int, stop: int) -> None:
        """Records start to stop; one by one where they fail together."""
        try:
            gradients = per_record(parameters, inputs[start:stop], targets[start:stop])
            clipped = _clipped_sum(gradients, clip_norm)
        except Exception as error:
            if raise_errors:
                raise
            if stop - start > 1:
                for at in range(start, stop):
                    add(at, at + 1)
            else:
                log.warning("a record counts as zero: %s: %s", type(error).__name__, error)
            return
        for name, value in clipped.items():
            total[name] += value

    for start in range(0, len(inputs), microbatch):
        add(start, min(start + microbatch, len(inputs)))
    return {name: value.float().cpu().numpy().reshape(tuple(value.shape) or (1,)) for name, value in total.items()}


def _clipped_sum(gradients: Weights, clip_norm: float) -> Weights:
    """Per-record gradients, first dimension the records, summed in float64: each of at most the norm, or zero."""
    flat = torch.cat([value.reshape(len(value), -1) for value in gradients.values()], dim=1).double()
    norms = flat.norm(dim=1)
    finite = norms.isfinite()  # also of a finite gradient the squares may overflow
    factor = torch.where(finite, (clip_norm / norms.clamp_min(1e-12)).clamp(max=1.0), 0.0)
    if not bool(finite.all()):
        log.warning("%d records count as zero: their gradients are not finite", int((~finite).sum()))
    return {
        name: torch.einsum("r,r...->...", factor, torch.where(_rows(finite, value), value.double(), 0.0))
        for name, value in gradients.items()
    }


def _rows(chosen: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One flag a record, in the shape that spreads over the record's values."""
    return chosen.reshape(-1, *[1] * (value.dim() - 1))


__all__ = [
    "arrays",
    "clipped_gradient_sum",
    "difference",
    "load_arrays",
    "poisson_sample",
    "tensor_specs",
]
