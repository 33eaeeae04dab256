"""Records in tensors: one tensor, or several of them in tuples, lists and dicts. The first dimension is the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS

Batch: TypeAlias = "torch.Tensor | Sequence[Batch] | Mapping[str, Batch]"


def records_in(inputs: Batch, targets: Batch) -> int:
    """How many records these are. Raises `bad-tensors` for what is no tensor, and for different numbers of them."""
    counts = {
        f"{name}{place}": _count(f"{name}{place}", value)
        for name, batch in (("inputs", inputs), ("targets", targets))
        for place, value in _leaves(batch)
    }
    if not any(place.startswith("inputs") for place in counts):
        raise ProblemError(BAD_TENSORS, "the inputs hold no tensor")
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{count} in {place}" for place, count in counts.items())
        raise ProblemError(BAD_TENSORS, "records", expected="as many in every tensor", got=said)
    return next(iter(counts.values()))


def mapped(change: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Any:
    """The same nest of changed tensors; a list comes back as a tuple, any mapping as a dict."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: mapped(change, value) for name, value in batch.items()}
    return tuple(mapped(change, value) for value in batch)


def _leaves(batch: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """What is no nest, with where it is: ['mask'], [0]."""
    if isinstance(batch, Mapping):
        for name, value in batch.items():
            yield from _leaves(value, f"{place}[{name!r}]")
    elif isinstance(batch, list | tuple):
        for at, value in enumerate(batch):
            yield from _leaves(value, f"{place}[{at}]")
    else:
        yield place, batch


def _count(place: str, value: Any) -> int:
    if not isinstance(value, torch.Tensor):
        raise ProblemError(BAD_TENSORS, place, expected="a tensor", got=type(value).__name__)
    if value.dim() == 0:
        raise ProblemError(BAD_TENSORS, place, expected="the records as the first dimension", got="a scalar")
    return len(value)
