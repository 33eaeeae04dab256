"""DP-FedSGD's clipped gradient sum: each record's gradient by itself, for any module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from he_client.training import rows
from he_client.training.batches import Batch, mapped, records_in
from he_client.training.ghost import Found, GhostPass, UnfitError, worthwhile
from he_client.training.layers import dense_embeddings, layer_of, refuse_mixing, writes_weights
from he_client.training.modules import Arrays, Weights, array_of, plain_name, trained, unwrapped
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

log = logging.getLogger("he-client")

LARGEST = 1e30
"""A gradient of a longer norm counts as one that is not finite: so it does not matter which way would overflow."""

SMALL = 2**26
"""Bytes of gradients of single records, of a microbatch, that are no burden."""

MICROBATCH = 64
"""Records in memory at a time, where nobody says."""

Method = Literal["ghost", "vmap", "streamed"]
"""Ghost clipping; gradients of single records, together; or one record after the other."""

Loss = Callable[[Any, Any], torch.Tensor]


def clipped_gradient_sum(
    module: nn.Module,
    loss: Loss,
    inputs: Batch,
    targets: Batch,
    clip_norm: float,
    *,
    microbatch: int = MICROBATCH,
    raise_errors: bool = False,
) -> Arrays:
    """Sum over records of the gradient of each, scaled to L2 norm <= `clip_norm` (Abadi et al. 2016).

    inputs: a tensor of shape (records, ...), a tuple or list of them (the module's positional arguments), or a dict
    (its named ones). targets: a tensor, or a nest of them. The module sees batches of one record, copies on its own
    device; `loss(output, target)` is a scalar for one record. No records give zeros. Parameters that require no
    gradient are left out: they are not sent, and take nothing of the norm. Every record sees the same weights and
    buffers, and with dropout a mask of its own.

    Norms come from ghost clipping, `microbatch` records at a time, where linear, convolution and embedding layers have
    most of what is trained; but for small convolutions, and all else, gradients of single records come from vmap.
    Where it cannot do the module (GRU, `.item()`, what is written in place), they come from autograd, record by record,
    which is slower and is said in the log. The sums are the same. `Trainer` chooses by the memory that there is. It is
    for one thread at a time: while it runs, the module's layers are changed.

    What a record can do must be bounded whatever it is: one with a gradient that is not finite (or of a norm above
    1e30), or on which model or loss raise, counts as zero, which is said in the local log only. Otherwise a model of
    the server's choice finds out such a client by its silence. `raise_errors` is for trying a model out, on data that
    is public.

    Raises `bad-tensors` for inputs and targets that do not fit together; `bad-module` for a module that trains
    nothing, and for layers that mix records, such as BatchNorm; `bad-settings` for a `clip_norm` or `microbatch` that
    is none. Nothing of this depends on the records' values.
    """
    check_clip_norm(clip_norm)
    records_in(inputs, targets)
    return sum_by(fastest(module, microbatch), module, loss, inputs, targets, clip_norm, raise_errors=raise_errors)


def check_clip_norm(clip_norm: float) -> None:
    """Raises `bad-settings` for one that is none, also for that of a task without DP, which is 0."""
    if not 0 < clip_norm < inf:
        raise ProblemError(BAD_SETTINGS, "clip_norm", expected="above 0, and finite", got=clip_norm)


@dataclass(frozen=True)
class Way:
    """How the sum is computed: a method, and how many records are in memory at a time (`streamed`: one, always).

    Raises `bad-settings` for what is none.
    """

    method: Method
    microbatch: int

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ProblemError(BAD_SETTINGS, "method", expected=", ".join(get_args(Method)), got=self.method)
        if self.microbatch < 1:
            raise ProblemError(BAD_SETTINGS, "microbatch", expected="at least 1", got=self.microbatch)


def fastest(module: nn.Module, microbatch: int = MICROBATCH) -> Way:
    """What is mostly the fastest way for this module. Small gradients of convolutions are made sooner than avoided."""
    inner = unwrapped(module)
    size = microbatch * sum(value.nbytes for value in trained(inner).values())
    small = size <= SMALL and any(isinstance(layer, nn.Conv1d | nn.Conv2d) for layer in inner.modules())
    return Way("ghost" if worthwhile(inner) and not small else "vmap", microbatch)


def sum_by(
    way: Way, module: nn.Module, loss: Loss, inputs: Batch, targets: Batch, clip_norm: float, *, raise_errors: bool
) -> Arrays:
    """`clipped_gradient_sum` in a given way."""
    total = summed(way, module, loss, inputs, targets, clip_norm, raise_errors=raise_errors)
    found = total.arrays()
    total.tell()
    return found


def summed(
    way: Way, module: nn.Module, loss: Loss, inputs: Batch, targets: Batch, clip_norm: float, *, raise_errors: bool
) -> ClippedSum:
    """The same, before anything is said in the log."""
    count = records_in(inputs, targets)
    module = unwrapped(module)
    refuse_mixing(module)
    total = ClippedSum(_RecordGradients(module, loss), clip_norm, way.method, raise_errors)
    with dense_embeddings(module):
        for start in range(0, count, way.microbatch):
            some = itemgetter(slice(start, start + way.microbatch))
            total.add(mapped(some, inputs), mapped(some, targets))
    return total


class _RecordGradients:
    """Gradients of single records, at the weights that the module has now."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self.module, self._loss = module, loss
        self.weights = {name: value.detach() for name, value in trained(module).items()}
        self.device = next(iter(self.weights.values())).device
        self._frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
        self._writes = writes_weights(module)
        self._together = vmap(grad(self._loss_of), in_dims=(None, None, 0, 0), randomness="different")

    def ghost(self, inputs: Any, targets: Any) -> Found:
        """Of some records what their norms and their sum need. Raises `UnfitError`, and as `together` does."""
        run = GhostPass(self.module, self._loss_of, self.weights)
        return run.run(self._buffers(), self._moved(inputs), self._moved(targets), records_in(inputs, targets))

    def together(self, inputs: Any, targets: Any) -> Found:
        """Gradients of some records. Raises whatever vmap, module or loss raise."""
        found = self._together(self.weights, self._buffers(), self._moved(inputs), self._moved(targets))
        return Found(found, {})

    def alone(self, record: Any, target: Any) -> Found:
        """The same of one record, which has no dimension for the records, with autograd alone."""
        weights = {name: value.clone() if self._writes else value for name, value in self.weights.items()}
        weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        with torch.enable_grad():
            loss = self._loss_of(weights, self._buffers(), self._moved(record), self._moved(target))
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        return Found({name: value.to_dense().unsqueeze(0) for name, value in zip(weights, found, strict=True)}, {})

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


class ClippedSum:
    """The sum so far, in float64, and what was unusual about it."""

    def __init__(self, gradients: _RecordGradients, clip_norm: float, method: Method, raise_errors: bool) -> None:
        self._gradients, self._clip_norm, self._raise_errors = gradients, clip_norm, raise_errors
        self._method = method
        # Apple's GPUs have no float64
        self._where = torch.device("cpu") if gradients.device.type == "mps" else gradients.device
        self.values = {
            name: torch.zeros(value.shape, dtype=torch.float64, device=self._where)
            for name, value in gradients.weights.items()
        }
        self._slow, self._failed = "", list[str]()
        self._not_finite = torch.zeros((), dtype=torch.int64, device=self._where)

    def add(self, inputs: Any, targets: Any) -> None:
        """Records together; one by one where they fail together, be it for one of them or for what vmap cannot do."""
        if self._method != "streamed":
            try:
                found = self._together(inputs, targets)
                squares = self._squares(found)
            except Exception as error:
                self._slow = self._slow or f"{layer_of(self._gradients.module, error)}: {_said(error)}"
            else:
                self._clip(found, squares)
                return
        for at in range(records_in(inputs, targets)):
            self._add_one(mapped(itemgetter(at), inputs), mapped(itemgetter(at), targets))

    def _together(self, inputs: Any, targets: Any) -> Found:
        if self._method == "ghost":
            try:
                return self._gradients.ghost(inputs, targets)
            except UnfitError:
                self._method = "vmap"
        return self._gradients.together(inputs, targets)

    def _add_one(self, record: Any, target: Any) -> None:
        try:
            found = self._gradients.alone(record, target)
            squares = self._squares(found)
        except Exception as error:
            if self._raise_errors:
                raise
            self._failed.append(_said(error))
        else:
            self._clip(found, squares)

    def _squares(self, found: Found) -> torch.Tensor:
        """Of each record the squared norm of its gradient."""
        each = [_squares(value, self._where) for value in found.gradients.values()]
        each += [rows.squares(calls, self._where) for calls in found.calls.values()]
        return torch.stack(each).sum(0)

    def _clip(self, found: Found, squares: torch.Tensor) -> None:
        """What fails in here is not tried again in another way: part of it may have been added."""
        factor = _factors(squares, self._clip_norm)
        for name, value in found.gradients.items():
            _add(self.values[name], value, factor)
        for name, calls in found.calls.items():
            rows.add(self.values[name], calls, factor)
        self._not_finite += (factor == 0).sum()

    def arrays(self) -> Arrays:
        """The sums in float32, by plain names."""
        module = self._gradients.module
        return {plain_name(module, path): array_of(path, value) for path, value in self.values.items()}

    def tell(self) -> None:
        """One line in the local log for each thing that was unusual."""
        if self._slow:
            log.warning("vmap fails in %s; gradients were taken record by record, which is slower", self._slow)
        if self._failed:
            log.warning("%d records count as zero; of the first: %s", len(self._failed), self._failed[0])
        if not_finite := int(self._not_finite):
            log.warning("%d records count as zero: their gradients are not finite", not_finite)


def _factors(squares: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """What each record's gradient is multiplied by: so that its norm is at most the limit, or 0."""
    norms = squares.sqrt()
    return torch.where(norms <= LARGEST, (clip_norm / norms.clamp_min(1e-12)).clamp(max=1.0), 0.0)


def _squares(gradients: torch.Tensor, where: torch.device) -> torch.Tensor:
    """Of gradients of single records, first dimension the records."""
    flat = gradients.reshape(len(gradients), -1)
    found = torch.zeros(len(flat), dtype=torch.float64, device=where)
    for some in _pieces(flat):
        found += flat[:, some].to(where).double().square().sum(1)
    return found


def _add(total: torch.Tensor, gradients: torch.Tensor, factor: torch.Tensor) -> None:
    """Adds each record's gradient times its factor, in place; one whose factor is 0 adds nothing, whatever it is."""
    flat, sums = gradients.reshape(len(gradients), -1), total.view(-1)
    for some in _pieces(flat):
        piece = flat[:, some].to(total.device).double()
        sums[some] += factor @ torch.where(factor[:, None] > 0, piece, 0.0)


def _pieces(flat: torch.Tensor) -> Iterator[slice]:
    """Of the columns: in float64 they need twice the memory, so not all are converted at once. A small gradient goes in
    at most sixteen pieces, so that little comes on top; a large one in pieces that are worth a call."""
    step = max(64, min(rows.NUMBERS // len(flat), flat.shape[1] // 16))
    yield from (slice(at, at + step) for at in range(0, flat.shape[1], step))


def _batch_of_one(value: torch.Tensor) -> torch.Tensor:
    return value.unsqueeze(0)


def _said(error: Exception) -> str:
    """An exception in one line: vmap's go on for several."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
