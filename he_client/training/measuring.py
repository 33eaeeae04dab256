"""How much memory torch allocates at most, and how long it takes, on this device."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from he_client.training.batches import Batch
from he_client.training.gradients import Loss, Way, fastest, summed
from he_client.training.modules import unwrapped
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS


@dataclass(frozen=True)
class Measured:
    """`peak_bytes` that torch holds at most, and the `seconds` that the work takes."""

    peak_bytes: int
    seconds: float


def measure_work(work: Callable[[], object]) -> Measured:
    """Runs the work three times: once to warm up, once on the clock, once under torch's profiler.

    The peak is that of torch's allocations during the work, above what torch held before it, on the CPU and on CUDA
    devices together: every one is an event of the profiler, so it is exact. Not in it: what the interpreter, numpy and
    libraries allocate for themselves (tens of MB for the process), other devices, and what the work gives back of
    before. Raises `bad-settings` where torch was built without its profiler, and whatever the work raises.
    """
    if not torch.profiler.kineto_available():
        raise ProblemError(BAD_SETTINGS, "memory cannot be measured here: this torch was built without its profiler")
    work()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return Measured(_peak(work), seconds)


def measure(
    module: nn.Module,
    loss: Loss,
    inputs: Batch,
    targets: Batch,
    *,
    way: Way | None = None,
    raise_errors: bool = True,
) -> Measured:
    """What `clipped_gradient_sum` costs on this batch: torch's peak, with the module's own parameters and buffers.

    The batch, which is there anyway, does not count; copies of records do. `way` is a method and a microbatch, by
    default what `clipped_gradient_sum` takes. What is and is not in the peak, `measure_work` says. The module and its
    gradients stay as they are. Raises as `clipped_gradient_sum` and `measure_work` do, and what model or loss raise;
    `bad-settings` for a module on a device whose memory the profiler does not see, such as Apple's GPUs.
    """
    chosen = way or fastest(module)
    if unseen := {value.device.type for value in module.parameters()} - {"cpu", "cuda"}:
        raise ProblemError(BAD_SETTINGS, "memory cannot be measured", expected="cpu or cuda", got=", ".join(unseen))

    def work() -> object:
        return summed(chosen, module, loss, inputs, targets, 1.0, raise_errors=raise_errors).arrays()

    found = measure_work(work)
    return Measured(found.peak_bytes + held_by(module), found.seconds)


def held_by(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    inner = unwrapped(module)
    return sum(value.nbytes for value in (*inner.parameters(), *inner.buffers()))


def _peak(work: Callable[[], object]) -> int:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    gc.collect()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to standard error that it begins, and that it ends
    with profile(activities=activities, profile_memory=True) as seen:
        kept = work()
    del kept
    assert seen.profiler is not None, "it ran"
    assert seen.profiler.kineto_results is not None, "and ended"
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
