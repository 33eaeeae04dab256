"""The PyTorch helper: modules as named tensors, and DP-FedSGD's clipped gradient sum.

The only module of the client that imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from he_client.quantise import Words, secret_words
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS
from he_protocol.tensors import NAMED, check_shapes

log = logging.getLogger("he-client")

Arrays = dict[str, npt.NDArray[np.float32]]
Weights = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def tensor_specs(module: torch.nn.Module, *, buffers: bool = False) -> tuple[TensorSpec, ...]:
    """What a task's configuration says about the tensors of `arrays`."""
    return tuple(TensorSpec(name, tuple(value.shape)) for name, value in _trained(module, buffers).items())


def arrays(module: torch.nn.Module, *, buffers: bool = False) -> Arrays:
    """Copies of what the module trains (parameters that require a gradient): float32, by name.

    With `buffers`, the floating-point ones of these too (BatchNorm's statistics), so that rounds average them.
    """
    return {name: _array(value) for name, value in _trained(module, buffers).items()}


def load_arrays(module: torch.nn.Module, values: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy named tensors (as `arrays` gives them, or a pulled model) into the module; its others stay as they are.

    Raises `bad-tensors` for names or shapes that the module does not have.
    """
    there = _named(module, values)
    shapes = {name: tuple(value.shape) for name, value in there.items()}
    check_shapes({name: value.shape for name, value in values.items()}, shapes)
    with torch.no_grad():
        for name, value in values.items():
            there[name].copy_(torch.from_numpy(np.array(value)))


def difference(after: torch.nn.Module, before: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """The update of local training: the tensors of `before`, as they are after it, less those before.

    Raises `bad-tensors` for names that the module does not have.
    """
    there = _named(after, before)
    with np.errstate(all="ignore"):  # the encoder judges what is not finite
        return {name: np.asarray(_array(there[name]) - value) for name, value in before.items()}


def _trained(module: torch.nn.Module, buffers: bool = False) -> Weights:
    chosen: Weights = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if buffers:
        chosen |= {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    return chosen


def _named(module: torch.nn.Module, names: Iterable[str]) -> Weights:
    """Parameters and buffers of these names."""
    there = dict(module.named_parameters()) | dict(module.named_buffers())
    wanted = list(names)
    if strange := [name for name in wanted if name not in there]:
        raise ProblemError(BAD_TENSORS, f"the module has no {', '.join(strange[:NAMED])}", got=", ".join(there))
    return {name: there[name] for name in wanted}


def _array(value: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.array(value.detach().to(torch.float32).cpu().numpy())


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
    records come from vmap, `microbatch` at a time. No records give zeros. Parameters that require no gradient are
    left out: they are not sent, and take nothing of the norm.

    What a record can do must be bounded whatever it is: one with a gradient that is not finite, or on which model or
    loss raise, counts as zero, which is said in the local log only. Otherwise a model of the server's choice finds out
    such a client by its silence. `raise_errors` is for trying a model out, on data that is public.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
    parameters = {name: value.detach() for name, value in _trained(module).items()}
    fixed = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
    fixed |= dict(module.named_buffers())

    def one(weights: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = functional_call(module, (weights, fixed), (x.unsqueeze(0),))
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
    return {name: _array(value) for name, value in total.items()}


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
