"""From a float update to noised integers: clip, quantise, add noise (section 3 of the design).

Everything random here is secret, so it comes from the operating system's CSPRNG through AES-CTR.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from math import isfinite

import numpy as np
import numpy.typing as npt

from he_protocol.arithmetic.keystream import KEY_BYTES, expand_words
from he_protocol.errors import ProblemError
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.quantise import Floats, Integers, clip_factor, l2_norm, quantise, shrink
from he_protocol.problems import BAD_PLAN, BAD_TENSORS
from he_protocol.task import Task

log = logging.getLogger("he-client")

Words = Callable[[int], npt.NDArray[np.uint64]]
BLOCK = 1 << 15
"""Coordinates per block: bounds the memory that randomness takes."""


def secret_words(count: int) -> npt.NDArray[np.uint64]:
    """`count` uniform 64-bit words: AES-256-CTR under a fresh key from the operating system."""
    return expand_words(os.urandom(KEY_BYTES), count)


class UpdateQuantiser:
    """The integers that a client encrypts for one update, made block by block.

    update: float32, shape (task.parameters,); for unit "record" it is the sum of already clipped
    gradients (`he_client.training.clipped_gradient_sum`), however many: such a sum has no norm that could be checked
    here. examples: this client's number of examples, needed exactly where the task weights by them. Every block may be
    made once, in any order and from any thread.

    Under a DP plan whether there is an update must not depend on data: one that cannot be used becomes zero, which
    is said in the local log only, and is noised like any other. Without DP it is refused.

    Raises `bad-tensors` for another shape and `bad-plan` for examples that the task does not weight by: they do not
    depend on data. Without DP also for values.
    """

    def __init__(self, task: Task, update: Floats, examples: float | None, words: Words = secret_words) -> None:
        config = task.config
        if update.shape != (task.parameters,):
            raise ProblemError(
                BAD_TENSORS, "the update has another shape", expected=(task.parameters,), got=update.shape
            )
        if examples is not None and config.aggregation.weighting != "examples":
            raise ProblemError(
                BAD_PLAN, "a number of examples goes with weighting 'examples' only", got=config.aggregation.weighting
            )
        self._config = config
        self._update = update
        self._weight, self._factor = (
            _total(task, update, examples) if config.privacy.noisy else (_checked(task, update, examples))
        )
        self._noise = Gaussian(task.noise_std) if task.noise_std > 0 else None
        self._words = words

    def block(self, start: int, stop: int) -> Integers:
        """Coordinates start to stop: clipped, weighted, quantised, with noise; int64.

        Nothing is made for the whole update at once. The last coordinate is the weight, where one rides along.
        """
        config = self._config
        block = shrink(self._update[start:stop], self._factor)
        if stop > self._update.size and config.aggregation.weighting == "examples":
            block = np.append(block, np.float32(self._weight * config.aggregation.value_range))
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
    integers = quantise(block, 1.0, 1.0, secret_words(32).view("<u4"))
    noise = Gaussian(1000.0)
    noise.add(integers, secret_words(noise.words(integers.size)))


def _checked(task: Task, update: Floats, examples: float | None) -> tuple[float, float]:
    """Without DP: the weight as a fraction of the largest, and what to multiply the update by. Raises for nonsense."""
    if task.config.aggregation.weighting == "examples" and examples is None:
        raise ProblemError(BAD_PLAN, "a number of examples goes with weighting 'examples'")
    if examples is not None and not examples > 0:
        raise ProblemError(BAD_PLAN, "the number of examples must be positive", got=examples)
    if not isfinite(l2_norm(update)):
        raise ProblemError(BAD_TENSORS, "the update has a value that is not finite")
    weight = _fraction(task, examples)
    return weight, weight


def _total(task: Task, update: Floats, examples: float | None) -> tuple[float, float]:
    """Under DP: the same, for anything. An update or a weight that cannot be used makes both zero."""
    plan, length = task.config.privacy, l2_norm(update)
    weight = _fraction(task, examples)
    if not isfinite(length):
        log.warning("the update has a value that is not finite: a zero update takes its place")
        weight = 0.0
    elif weight == 0:
        log.warning("the update has no usable number of examples: a zero update takes its place")
    clip = clip_factor(length, plan.clip_norm) if plan.unit == "client" and isfinite(length) else 1.0
    return weight, clip * weight


def _fraction(task: Task, examples: float | None) -> float:
    """The weight as a fraction of the largest: 1 where the task does not weight, 0 where there is no number above 0."""
    config = task.config
    if config.aggregation.weighting != "examples":
        return 1.0
    try:
        given = 0.0 if examples is None else float(min(examples, config.aggregation.weight_cap))
    except (TypeError, ValueError, OverflowError, ArithmeticError):  # what a training function gave may be anything
        return 0.0
    return given / config.aggregation.weight_cap if given > 0 else 0.0
