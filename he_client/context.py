"""What a training function is told beside the model, and how it may say what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from he_client.tensors import Tensors
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.task import Task

Metrics = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class TrainingContext:
    """The second argument of a training function that asks for it.

    task: as the authority signed it. version: of the model that the function gets. round: which round of this run it
    trains for, from 1; the same again where an update has to be made anew on a newer model. client: this client's
    name. state: the function's own, one dict for each client, kept in memory from round to round of one run.
    """

    task: Task
    version: int
    round: int
    client: str
    state: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def plan(self) -> PrivacyPlan:
        """What the task promises: unit, clip_norm, sampling_rate, and so on."""
        return self.task.config.privacy


@dataclass(frozen=True)
class LocalResult:
    """What a training function may return, with everything said in words.

    tensors: arrays by the task's names, or a list of them in its order: the update, which is new minus old. With
    `weights` they are the new weights instead, and the client subtracts the model. examples: where the task weights by
    them. metrics: numbers by name, or for a histogram many of them, shown on this device. Those that the task asks for
    join its encrypted sums; others are never sent. With unit "record" they are made of the sampled records alone.
    """

    tensors: Tensors = field(repr=False)
    examples: float | None = None
    metrics: Metrics = field(default_factory=dict)
    weights: bool = False
