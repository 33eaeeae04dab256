"""From a float update to noised integers: clip, quantise, add noise (section 3 of the design).

Everything random here is secret, so it comes from the operating system's CSPRNG through AES-CTR.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from he_protocol.aggregation.metrics import SATURATED
from he_protocol.arithmetic.keystream import KEY_BYTES, expand_words
from he_protocol.errors import ProblemError
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.quantise import Floats, Integers, clip_factor, l2_norm, quantise, saturated, shrink
from he_protocol.privacy.rotation import Rotation
from he_protocol.problems import BAD_TENSORS
from he_protocol.task import Task
from he_protocol.tensors import NAMED

log = logging.getLogger("he-client")

Words = Callable[[int], npt.NDArray[np.uint64]]
BLOCK = 1 << 15
"""Coordinates per block: bounds the memory that randomness takes."""
MUCH_SATURATED = 0.001
"""The share of cut coordinates above which a warning says so."""
MUCH_CLIPPED = 0.5
"""The share of its norm, or of its examples, below which an update that was cut to it is warned of."""


@dataclass(frozen=True)
class Limited:
    """What a task's limits took of one update: known to this device only, since it tells of its data.

    saturated: the share of the model's coordinates that were cut to ±value_range. norm: the update's L2 norm as it
    came, not finite where a value is not. clipped_norm: after it was scaled to at most clip_norm.
    """

    saturated: float
    norm: float
    clipped_norm: float


def secret_words(count: int) -> npt.NDArray[np.uint64]:
    """`count` uniform 64-bit words: AES-256-CTR under a fresh key from the operating system."""
    return expand_words(os.urandom(KEY_BYTES), count)


class UpdateQuantiser:
    """The integers that a client encrypts for one update, made block by block.

    update: float32, shape (task.parameters,); for unit "record" it is the sum of already clipped
    gradients (`he_client.training.clipped_gradient_sum`), however many: such a sum has no norm that could be checked
    here. examples: this client's number of examples, needed exactly where the task weights by them. metrics: what the
    task asks for, by name; others are left out. Every block may be made once, in any order and from any thread.

    Under a DP plan whether there is an update must not depend on data: one that cannot be used becomes zero, which
    is said in the local log only, and is noised like any other. Without DP it is refused. `limited` says what the
    task's limits took; where it is much, so does the log.

    Raises `bad-tensors` for another shape and `bad-plan` for examples that the task does not weight by: they do not
    depend on data. Without DP also for values.
    """

    def __init__(
        self,
        task: Task,
        update: Floats,
        examples: float | None,
        words: Words = secret_words,
        *,
        metrics: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if update.shape != (task.parameters,):
            raise ProblemError(
                BAD_TENSORS, "the update has another shape", expected=(task.parameters,), got=update.shape
            )
        self._config = task.config
        weight, clip, norm = (_total if task.config.privacy.noisy else _checked)(task, update, examples)
        self._update, self._factor = update, clip * weight
        if task.rotation is not None:
            self._update, self._factor = task.rotation.forward(shrink(update, self._factor)), 1.0
        cut = saturated(self._update, self._factor, task.config.aggregation.value_range)
        self.limited = Limited(cut / update.size, norm, clip * norm)
        report = _report(task, {**metrics, SATURATED: self.limited.saturated})
        self._tail = np.concatenate([report, task.weighting.tail(weight)])
        _warn(task, self.limited)
        if examples is not None and weight == 1.0:  # a number that could be compared with the cap
            _warn_of_examples(task.config.aggregation.weight_cap, examples)
        self._noise = Gaussian(task.noise_std) if task.noise_std > 0 else None
        self._words = words

    def block(self, start: int, stop: int) -> Integers:
        """Coordinates start to stop: clipped, weighted, quantised, with noise; int64.

        Nothing is made for the whole update at once, but the rotated one where the task rotates. Metrics and the
        weighting's come after the model's.
        """
        config, size = self._config, self._update.size
        block = shrink(self._update[start:stop], self._factor)
        if stop > size:
            block = np.append(block, self._tail[max(start - size, 0) : stop - size])
        words = self._words((block.size + 1) // 2).view("<u4")[: block.size]
        integers = quantise(block, config.encryption.scale, config.aggregation.value_range, words)
        if self._noise is not None:
            self._noise.add(integers, self._words(self._noise.words(block.size)))
        return integers


def quantise_update(task: Task, update: Floats, examples: float | None, words: Words = secret_words) -> Integers:
    """All integers of an update at once, shape (task.length,), int64; see `UpdateQuantiser`."""
    quantiser = UpdateQuantiser(task, update, examples, words)
    return np.concatenate([quantiser.block(at, at + BLOCK) for at in range(0, task.length, BLOCK)])


def load_kernels() -> None:
    """Call every kernel that `UpdateQuantiser` calls, on a block of zeros."""
    block = np.zeros(64, dtype=np.float32)
    l2_norm(block)
    saturated(block, 1.0, 1.0)
    Rotation(block.size, b"").forward(block)
    integers = quantise(block, 1.0, 1.0, secret_words(32).view("<u4"))
    noise = Gaussian(1000.0)
    noise.add(integers, secret_words(noise.words(integers.size)))


def _checked(task: Task, update: Floats, examples: float | None) -> tuple[float, float, float]:
    """Without DP: the weight as a fraction of the largest, no clip, and the update's norm. Raises for nonsense."""
    task.weighting.check_examples(examples)
    length = l2_norm(update)
    if not isfinite(length):
        raise ProblemError(BAD_TENSORS, _not_finite(task, update))
    return task.weighting.fraction(examples), 1.0, length


def _total(task: Task, update: Floats, examples: float | None) -> tuple[float, float, float]:
    """Under DP: weight, clip and norm, for anything. What cannot be used makes the weight zero."""
    plan, length = task.config.privacy, l2_norm(update)
    weight = task.weighting.fraction(examples)
    if not isfinite(length):
        log.warning("%s: a zero update takes its place", _not_finite(task, update))
        return 0.0, 1.0, length
    if weight == 0:
        log.warning("the update has no usable number of examples: a zero update takes its place")
    return weight, clip_factor(length, plan.clip_norm) if plan.unit == "client" else 1.0, length


def _report(task: Task, metrics: Mapping[str, Any]) -> Floats:
    """What the task's metrics append: zeros where one is missing or of no use. No update is lost for them."""
    try:
        return task.reports.encode(metrics)
    except ProblemError as refusal:
        log.warning("no metrics are reported: %s", refusal)
        return np.zeros(task.reports.appended, dtype=np.float32)


def _not_finite(task: Task, update: Floats) -> str:
    """Which tensors have values that are not finite; the first few."""
    found, at = [], 0
    for spec in task.config.model.tensors:
        if bad := spec.size - int(np.count_nonzero(np.isfinite(update[at : at + spec.size]))):
            found.append(f"{bad} of {spec.size} values of tensor {spec.name!r}")
        at += spec.size
    return f"{', '.join(found[:NAMED])} are not finite (NaN, infinite, or beyond float32)"


def _warn(task: Task, limited: Limited) -> None:
    """One line for each limit that took much."""
    plan, reach = task.config.privacy, task.config.aggregation.value_range
    if limited.saturated > MUCH_SATURATED:
        log.warning(
            "%.3g %% of the update's coordinates were cut to the task's value range, ±%g: the model learns less than"
            " was sent. Send smaller updates (a lower learning rate, fewer steps), or ask for a larger"
            " aggregation.value_range",
            100 * limited.saturated,
            reach,
        )
    if limited.clipped_norm < MUCH_CLIPPED * limited.norm:
        log.warning(
            "the update's norm of %.4g was clipped to the task's clip_norm, %g: the model learns less than was sent."
            " Send smaller updates, or ask for a larger privacy.clip_norm (and more noise)",
            limited.norm,
            plan.clip_norm,
        )


def _warn_of_examples(cap: float, examples: float) -> None:
    """One line where a client counts for much less than it has."""
    if cap / MUCH_CLIPPED < examples:
        log.warning(
            "the update counts as one of %g examples, the task's weight_cap: less than half of its own. Ask for"
            " a larger aggregation.weight_cap",
            cap,
        )
