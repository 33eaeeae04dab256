"""A PyTorch module as named tensors, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_MODULE, BAD_TENSORS
from he_protocol.tensors import NAMED, check_shapes

Arrays = dict[str, npt.NDArray[np.float32]]
Weights = dict[str, torch.Tensor]


def tensor_specs(module: nn.Module, *, buffers: bool = False) -> tuple[TensorSpec, ...]:
    """What a task's configuration says about the tensors of `arrays`. Raises `bad-module` as it does."""
    return tuple(TensorSpec(name, tuple(value.shape)) for name, value in _chosen(module, buffers).items())


def arrays(module: nn.Module, *, buffers: bool = False) -> Arrays:
    """Copies of what the module trains (parameters that require a gradient): float32, by name.

    Wrappers (torch.compile, DataParallel, DistributedDataParallel) add nothing to names. With `buffers`, the
    floating-point ones of these too (BatchNorm's statistics), so that rounds average them. Raises `bad-module` for a
    module that trains nothing, or whose parameters have no values yet or are complex.
    """
    return {name: array_of(name, value) for name, value in _chosen(module, buffers).items()}


def load_arrays(module: nn.Module, values: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy named tensors (as `arrays` gives them, or a pulled model) into the module; its others stay as they are.

    Raises `bad-tensors` for names or shapes that the module does not have.
    """
    there = _named(module, values)
    shapes = {name: tuple(value.shape) for name, value in there.items()}
    check_shapes({name: value.shape for name, value in values.items()}, shapes)
    with torch.no_grad():
        for name, value in values.items():
            there[name].copy_(torch.from_numpy(np.array(value)))


def difference(after: nn.Module, before: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
    """The update of local training: the tensors of `before`, as they are after it, less those before.

    What a module of few bits (bfloat16) lost of `before` when it was loaded is no part of it. Raises `bad-tensors` for
    names that the module does not have.
    """
    return {name: _moved(name, value, before[name]) for name, value in _named(after, before).items()}


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of torch.compile, DataParallel and DistributedDataParallel, in any order."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def plain_name(module: nn.Module, path: str) -> str:
    """The name of a parameter or buffer, as it is where no module on its path is wrapped."""
    steps = []
    for step in path.split("."):
        if _wrapped(module) is None:
            steps.append(step)
        module = getattr(module, step)
    return ".".join(steps)


def trained(module: nn.Module) -> Weights:
    """The parameters that require a gradient, by the module's own names. Raises `bad-module` as `arrays` does."""
    found: Weights = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not found:
        frozen = sum(1 for _ in module.parameters())
        raise ProblemError(
            BAD_MODULE,
            "the module trains nothing: none of its parameters requires a gradient",
            expected="a module with parameters; requires_grad_(True) thaws frozen ones",
            got=f"{frozen} frozen parameters",
        )
    for name, value in found.items():
        if nn.parameter.is_lazy(value):
            raise ProblemError(
                BAD_MODULE, f"parameter {name!r} has no shape yet", expected="a module that has seen a batch"
            )
        if not value.is_floating_point():
            raise ProblemError(BAD_MODULE, f"parameter {name!r}", expected="real numbers", got=value.dtype)
    return found


def array_of(name: str, value: torch.Tensor) -> npt.NDArray[np.float32]:
    """A copy of a tensor of any floating-point type and device. Raises `bad-module` for one without values."""
    if value.is_meta:
        raise ProblemError(BAD_MODULE, f"{name!r} has no values: it is on the device 'meta'")
    return np.array(value.detach().to(torch.float32).cpu().numpy())


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What this module wraps, None for one that is no wrapper."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module._modules.get("_orig_mod")  # of torch.compile, whose class takes a second to import


def _chosen(module: nn.Module, buffers: bool) -> Weights:
    """What travels, by plain names."""
    chosen = trained(module)
    if buffers:
        chosen |= {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    return {plain_name(module, path): value for path, value in chosen.items()}


def _named(module: nn.Module, names: Iterable[str]) -> Weights:
    """Parameters and buffers of these plain names. A tied parameter answers to each of its names."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    there = {plain_name(module, path): value for path, value in own.items()}
    wanted = list(names)
    if strange := [name for name in wanted if name not in there]:
        raise ProblemError(BAD_TENSORS, f"the module has no {', '.join(strange[:NAMED])}", got=", ".join(there))
    return {name: there[name] for name in wanted}


def _moved(name: str, after: torch.Tensor, before: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    loaded = torch.from_numpy(np.array(before)).to(after.dtype)
    with np.errstate(all="ignore"):  # the encoder judges what is not finite
        return np.asarray(array_of(name, after) - array_of(name, loaded))
