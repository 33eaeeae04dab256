"""What layers do that matters for gradients of single records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb

from torch import nn

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_MODULE
from he_protocol.tensors import NAMED

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
INSTEAD = (
    (BATCH_NORMS, "nn.GroupNorm(1, channels), or the layer in eval() where it has statistics of public data"),
    (INSTANCE_NORMS, "track_running_stats=False, or nn.GroupNorm(channels, channels)"),
)
"""What to put in the place of each kind."""


def refuse_mixing(module: nn.Module) -> None:
    """Refuse layers in which one record changes what others give: to clip each record's gradient would bound nothing.

    Raises `bad-module`, which names them and what to put in their place.
    """
    for kinds, instead in INSTEAD:
        found = [
            f"{type(layer).__name__} {name!r}"
            for name, layer in module.named_modules()
            if isinstance(layer, kinds) and _mixes(layer)
        ]
        if found:
            raise ProblemError(
                BAD_MODULE,
                "layers mix the records of a batch, so no record has a gradient of its own",
                expected=instead,
                got=", ".join(found[:NAMED]),
            )


@contextmanager
def dense_embeddings(module: nn.Module) -> Iterator[None]:
    """Within this, embeddings give dense gradients: what is clipped is dense, and vmap knows no sparse ones."""
    sparse = [layer for layer in module.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse]
    try:
        for layer in sparse:
            layer.sparse = False
        yield
    finally:
        for layer in sparse:
            layer.sparse = True


def writes_weights(module: nn.Module) -> bool:
    """Whether a forward pass may write into weights: an embedding with a limit does, and what is not PyTorch's may."""
    return any(
        not type(layer).__module__.startswith("torch.nn.")
        or getattr(layer, "max_norm", None) is not None
        or layer._forward_hooks
        or layer._forward_pre_hooks
        for layer in module.modules()
    )


def layer_of(module: nn.Module, error: BaseException) -> str:
    """The innermost layer in which an exception was raised, as "GRU 'encoder'"; "the loss or its gradient" in none."""
    names = {id(layer): name for name, layer in module.named_modules()}
    found = "the loss or its gradient"
    for frame, _ in walk_tb(error.__traceback__):
        layer = frame.f_locals.get("self")
        if id(layer) in names:
            found = f"{type(layer).__name__} {names[id(layer)]!r}".removesuffix(" ''")
    return found


def _mixes(layer: nn.Module) -> bool:
    """BatchNorm computes with the batch's own statistics unless it is in eval() and keeps some; InstanceNorm never
    does, but may keep statistics while it trains."""
    keeps = layer.running_mean is not None
    return layer.training and keeps if isinstance(layer, INSTANCE_NORMS) else layer.training or not keeps
