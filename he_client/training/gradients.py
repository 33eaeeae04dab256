"""DP-FedSGD's clipped gradient sum: each record's gradient by itself, for any module."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from operator import itemgetter
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from he_client.training.batches import Batch, mapped, records_in
from he_client.training.layers import dense_embeddings, layer_of, refuse_mixing
from he_client.training.modules import Arrays, Weights, array_of, plain_name, trained, unwrapped
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

log = logging.getLogger("he-client")

Loss = Callable[[Any, Any], torch.Tensor]


def clipped_gradient_sum(
    module: nn.Module,
    loss: Loss,
    inputs: Batch,
    targets: Batch,
    clip_norm: float,
    *,
    microbatch: int = 64,
    raise_errors: bool = False,
) -> Arrays:
    """Sum over records of the gradient of each, scaled to L2 norm <= `clip_norm` (Abadi et al. 2016).

    inputs: a tensor of shape (records, ...), a tuple or list of them (the module's positional arguments), or a dict
    (its named ones). targets: a tensor, or a nest of them. The module sees batches of one record, copies on its own
    device; `loss(output, target)` is a scalar for one record. No records give zeros. Parameters that require no
    gradient are left out: they are not sent, and take nothing of the norm. Every record sees the same weights and
    buffers, and with dropout a mask of its own.

    Gradients come from vmap, `microbatch` records at a time; where it cannot do the module (GRU, `.item()`,
    what is written in place), from autograd, record by record, which is slower and is said in the log.

    What a record can do must be bounded whatever it is: one with a gradient that is not finite, or on which model or
    loss raise, counts as zero, which is said in the local log only. Otherwise a model of the server's choice finds out
    such a client by its silence. `raise_errors` is for trying a model out, on data that is public.

    Raises `bad-tensors` for inputs and targets that do not fit together; `bad-module` for a module that trains
    nothing, and for layers that mix records, such as BatchNorm; `bad-settings` for a `clip_norm` or `microbatch` that
    is none. Nothing of this depends on the records' values.
    """
    if not 0 < clip_norm < inf:  # also that of a task without DP, which is 0
        raise ProblemError(BAD_SETTINGS, "clip_norm", expected="above 0, and finite", got=clip_norm)
    if microbatch < 1:
        raise ProblemError(BAD_SETTINGS, "microbatch", expected="at least 1", got=microbatch)
    count = records_in(inputs, targets)
    module = unwrapped(module)
    refuse_mixing(module)
    total = _ClippedSum(_RecordGradients(module, loss), clip_norm, raise_errors)
    with dense_embeddings(module):
        for start in range(0, count, microbatch):
            some = itemgetter(slice(start, start + microbatch))
            total.add(mapped(some, inputs), mapped(some, targets))
    total.tell()
    return {plain_name(module, path): array_of(path, value) for path, value in total.values.items()}


class _RecordGradients:
    """Gradients of single records, at the weights that the module has now."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self.module, self._loss = module, loss
        self.weights = {name: value.detach() for name, value in trained(module).items()}
        self.device = next(iter(self.weights.values())).device
        self._frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
        self._together = vmap(grad(self._loss_of), in_dims=(None, None, 0, 0), randomness="different")

    def together(self, inputs: Any, targets: Any) -> Weights:
        """By the parameters' names; first dimension the records. Raises whatever vmap, module or loss raise."""
        found: Weights = self._together(self.weights, self._buffers(), self._moved(inputs), self._moved(targets))
        return found

    def alone(self, record: Any, target: Any) -> Weights:
        """The same of one record, which has no dimension for the records, with autograd alone."""
        weights = {name: value.clone().requires_grad_() for name, value in self.weights.items()}
        with torch.enable_grad():
            loss = self._loss_of(weights, self._buffers(), self._moved(record), self._moved(target))
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        return {name: value.to_dense().unsqueeze(0) for name, value in zip(weights, found, strict=True)}

    def _buffers(self) -> Weights:
        """Copies: what the module writes into them for some records, no other record sees."""
        return {name: value.detach().clone() for name, value in self.module.named_buffers()}

    def _moved(self, batch: Any) -> Any:
        """Copies, since a module may change its inputs in place."""
        return mapped(lambda value: value.to(self.device, copy=True), batch)

    def _loss_of(self, weights: Weights, buffers: Weights, record: Any, target: Any) -> torch.Tensor:
        x, y = mapped(_batch_of_one, record), mapped(_batch_of_one, target)
        named = x if isinstance(x, dict) else {}
        positional = x if isinstance(x, tuple) else () if named else (x,)
        return self._loss(functional_call(self.module, (weights, self._frozen, buffers), positional, named), y)


class _ClippedSum:
    """The sum so far, in float64, and what was unusual about it."""

    def __init__(self, gradients: _RecordGradients, clip_norm: float, raise_errors: bool) -> None:
        self._gradients, self._clip_norm, self._raise_errors = gradients, clip_norm, raise_errors
        # Apple's GPUs have no float64
        self._where = torch.device("cpu") if gradients.device.type == "mps" else gradients.device
        self.values = {
            name: torch.zeros_like(value, dtype=torch.float64, device=self._where)
            for name, value in gradients.weights.items()
        }
        self._slow, self._failed, self._not_finite = "", list[str](), 0

    def add(self, inputs: Any, targets: Any) -> None:
        """Records together; one by one where they fail together, be it for one of them or for what vmap cannot do."""
        try:
            self._clip(self._gradients.together(inputs, targets))
        except Exception as error:
            self._slow = self._slow or f"{layer_of(self._gradients.module, error)}: {_said(error)}"
        else:
            return
        for at in range(records_in(inputs, targets)):
            self._add_one(mapped(itemgetter(at), inputs), mapped(itemgetter(at), targets))

    def _add_one(self, record: Any, target: Any) -> None:
        try:
            self._clip(self._gradients.alone(record, target))
        except Exception as error:
            if self._raise_errors:
                raise
            self._failed.append(_said(error))

    def _clip(self, gradients: Weights) -> None:
        """Adds nothing unless it can add all of it."""
        moved = {name: value.to(self._where) for name, value in gradients.items()}
        clipped, not_finite = _clipped_sum(moved, self._clip_norm)
        for name, value in clipped.items():
            self.values[name] += value
        self._not_finite += not_finite

    def tell(self) -> None:
        """One line in the local log for each thing that was unusual."""
        if self._slow:
            log.warning("vmap fails in %s; gradients were taken record by record, which is slower", self._slow)
        if self._failed:
            log.warning("%d records count as zero; of the first: %s", len(self._failed), self._failed[0])
        if self._not_finite:
            log.warning("%d records count as zero: their gradients are not finite", self._not_finite)


def _clipped_sum(gradients: Weights, clip_norm: float) -> tuple[Weights, int]:
    """Per-record gradients, first dimension the records, summed in float64: each of at most the norm, or zero. And how
    many are zero because they are not finite.
    """
    lengths = [value.reshape(len(value), -1).double().norm(dim=1) for value in gradients.values()]
    norms = torch.stack(lengths).norm(dim=0)
    finite = norms.isfinite()  # also of a finite gradient the squares may overflow
    factor = torch.where(finite, (clip_norm / norms.clamp_min(1e-12)).clamp(max=1.0), 0.0)
    total = {
        name: torch.einsum("r,r...->...", factor, torch.where(_rows(finite, value), value.double(), 0.0))
        for name, value in gradients.items()
    }
    return total, int((~finite).sum())


def _batch_of_one(value: torch.Tensor) -> torch.Tensor:
    return value.unsqueeze(0)


def _rows(chosen: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One flag a record, in the shape that spreads over the record's values."""
    return chosen.reshape(-1, *[1] * (value.dim() - 1))


def _said(error: Exception) -> str:
    """An exception in one line: vmap's go on for several."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
