"""Which tensors to train, and how, in the memory that there is: measured on this device, never only computed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from he_client.training.batches import Batch, mapped, records_in
from he_client.training.ghost import worthwhile
from he_client.training.gradients import MICROBATCH, Loss, Method, Way, fastest, summed
from he_client.training.measuring import Measured, measure
from he_client.training.modules import plain_name, trained, unwrapped
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS, BAD_TENSORS

UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]{0,3})")
MOST_PLANS = 8
"""How many choices of layers are looked at, in a module that has more."""


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, and how: the names of the `tensors`, how many numbers (`parameters`) they are, and the way.

    `peak_bytes` and `seconds` are those of one sum over the example, measured; `work` is the floating-point operations
    of matrix products and convolutions, forward and backward, for one record.
    """

    tensors: tuple[str, ...]
    parameters: int
    method: Method
    microbatch: int
    peak_bytes: int
    seconds: float
    work: int


def parse_size(text: str) -> int:
    """Bytes: "128 KiB", "1.5 MB", "131072". Raises `bad-settings`."""
    read = SIZE.fullmatch(text.strip())
    unit = UNITS.get(read[2].lower()) if read else None
    found = int(float(read[1]) * unit) if read and unit else 0
    if found < 1:
        raise ProblemError(BAD_SETTINGS, "budget", expected='a size, such as "128 KiB" or "4 MB"', got=text[:40])
    return found


def propose(module: nn.Module, loss: Loss, inputs: Batch, targets: Batch, budget: int | str) -> TrainingPlan:
    """The plan that trains most in this budget: all that is trained now, or its last layers, as few less as need be.

    Of the ways that fit it takes the fastest. The inputs and targets are an example, of at least one record, with
    shapes as training will have them; it should be public, since what model or loss raise on it is raised here. The
    budget is for what `measure` counts.

    Raises `bad-settings` where nothing fits, which names the smallest plan; and as `clipped_gradient_sum` does.
    """
    allowed = parse_size(budget) if isinstance(budget, str) else budget
    smallest: TrainingPlan | None = None
    for plan in plans(module, loss, inputs, targets, allowed):
        if plan.peak_bytes <= allowed:
            return plan
        smallest = plan if smallest is None or plan.peak_bytes < smallest.peak_bytes else smallest
    assert smallest is not None, "a module that trains nothing was refused"
    raise over_budget(allowed, smallest.peak_bytes, f"{', '.join(smallest.tensors[:3])}, {smallest.method}")


def plans(
    module: nn.Module, loss: Loss, inputs: Batch, targets: Batch, budget: int | None = None
) -> Iterator[TrainingPlan]:
    """Every choice of last layers, beginning with all: in the fastest way that fits the budget, or in the smallest."""
    inner = unwrapped(module)
    if not records_in(inputs, targets):
        raise ProblemError(BAD_TENSORS, "the example", expected="at least one record")
    for names in _last_layers(inner):
        with only_trained(inner, names):
            way, found = choose(inner, loss, inputs, targets, budget, raise_errors=True)
            size = sum(value.numel() for value in trained(inner).values())
            work = _work(inner, loss, inputs, targets)
        tensors = tuple(plain_name(inner, name) for name in names)
        yield TrainingPlan(tensors, size, way.method, way.microbatch, found.peak_bytes, found.seconds, work)


def choose(
    module: nn.Module, loss: Loss, inputs: Batch, targets: Batch, budget: int | None, *, raise_errors: bool
) -> tuple[Way, Measured]:
    """The fastest way that fits the budget, for all that the module trains; the smallest where none does."""
    count = records_in(inputs, targets)

    def measured(way: Way) -> tuple[Way, Measured]:
        some = itemgetter(slice(2 * way.microbatch))  # two microbatches: the second has the sum of the first beside it
        taken = mapped(some, inputs), mapped(some, targets)
        found = measure(module, loss, *taken, way=way, raise_errors=raise_errors)
        return way, Measured(found.peak_bytes, found.seconds * count / records_in(*taken))

    if budget is None:
        return measured(fastest(module, min(count, MICROBATCH)))
    tried = []
    for ways in _together(module, count):
        tried += [measured(way) for way in ways]
        if any(found.peak_bytes <= budget for _, found in tried):
            break  # smaller microbatches are slower
    tried.append(measured(Way("streamed", 1)))
    if fitting := [each for each in tried if each[1].peak_bytes <= budget]:
        return min(fitting, key=lambda each: each[1].seconds)
    return min(tried, key=lambda each: each[1].peak_bytes)


def over_budget(budget: int, smallest: int, what: str = "") -> ProblemError:
    """The refusal where nothing fits, which says what would."""
    needs = f"at least {smallest} bytes" + (f", for the plan of {what}" if what else "")
    return ProblemError(BAD_SETTINGS, "the budget is too small to train in", expected=needs, got=f"{budget} bytes")


@contextmanager
def only_trained(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within this, of what the module trains only these tensors require a gradient."""
    others = [value for name, value in trained(module).items() if name not in names]
    try:
        for value in others:
            value.requires_grad_(False)
        yield
    finally:
        for value in others:
            value.requires_grad_(True)


def _last_layers(module: nn.Module) -> list[list[str]]:
    """Names of what is trained: all, all but the first layer, and so on to the last; of many layers some."""
    names = list(trained(module))
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    starts = [names.index(next(each for each in names if each.rpartition(".")[0] == layer)) for layer in layers]
    step = max(1, -(-len(starts) // MOST_PLANS))
    return [names[start:] for start in dict.fromkeys([*starts[::step], starts[-1]])]


def _together(module: nn.Module, count: int) -> Iterator[list[Way]]:
    """Ways with several records in memory, of the same microbatch; the largest first."""
    methods: tuple[Method, ...] = ("ghost", "vmap") if worthwhile(module) else ("vmap",)
    microbatch = min(count, MICROBATCH)
    while microbatch > 0:
        yield [Way(method, microbatch) for method in methods]
        microbatch //= 4


def _work(module: nn.Module, loss: Loss, inputs: Batch, targets: Batch) -> int:
    one = itemgetter(slice(1))
    with FlopCounterMode(display=False) as counter:
        summed(Way("streamed", 1), module, loss, mapped(one, inputs), mapped(one, targets), 1.0, raise_errors=True)
    return int(counter.get_total_flops())
