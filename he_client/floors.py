"""What a device asks of every task, whatever the authority signed: less is not trained for."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from he_protocol.config import LEAST_CLIENTS
from he_protocol.errors import ProblemError
from he_protocol.privacy.plan import epsilon
from he_protocol.problems import BAD_SETTINGS, BELOW_FLOOR
from he_protocol.task import Task

Unit = Literal["none", "record", "client"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""From the weakest to the strongest: protection of a whole client includes each of its records."""


@dataclass(frozen=True)
class Floors:
    """The least that a device takes part in.

    unit: of differential privacy, or more. epsilon: the most that all of the task's openings may cost, at a delta of at
    most `delta`. collusion: key holders that may side with the server (f) before an update can be read.
    """

    min_clients: int = LEAST_CLIENTS
    unit: Unit = "none"
    epsilon: float = inf
    delta: float = 1e-4
    collusion: int = 0

    def __post_init__(self) -> None:
        if self.min_clients < 1 or not self.epsilon > 0 or not 0 < self.delta < 1 or self.collusion < 0:
            raise ProblemError(
                BAD_SETTINGS, "a floor", expected="min_clients, epsilon, delta and collusion in range", got=self
            )
        if self.unit not in UNITS:
            raise ProblemError(BAD_SETTINGS, "floor: unit", expected=", ".join(UNITS), got=self.unit)


def check_floors(task: Task, floors: Floors) -> None:
    """Refuse a task that promises less than this device asks for. Raises `below-floor`."""
    rounds, plan = task.config.rounds, task.config.privacy
    if rounds.min_clients < floors.min_clients:
        raise _below(task, "rounds.min_clients", f"at least {floors.min_clients}", rounds.min_clients)
    if UNITS.index(plan.unit) < UNITS.index(floors.unit):
        raise _below(task, "the unit of privacy", floors.unit, plan.unit)
    if (f := task.committee.colluders) < floors.collusion:
        raise _below(task, "colluding key holders", f"at least {floors.collusion}", f)
    if floors.epsilon == inf:
        return
    if plan.noisy and plan.delta > floors.delta:
        raise _below(task, "delta", f"at most {floors.delta}", plan.delta)
    if (cost := epsilon(plan, rounds.max_openings)) > floors.epsilon:
        raise _below(task, f"epsilon of {rounds.max_openings} openings", f"at most {floors.epsilon}", f"{cost:.4f}")


def _below(task: Task, what: str, expected: str, got: object) -> ProblemError:
    return ProblemError(BELOW_FLOOR, f"{what} of task {task.config.name!r}", expected=expected, got=got)
