"""From a round's mean to the next model: the server's optimiser, over any run of coordinates.

Every one sees the mean only, which is public or has its noise already: it costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from he_protocol.aggregation.combination import Mean
from he_protocol.errors import ProblemError
from he_protocol.messages import Message, PositiveFloat
from he_protocol.privacy.plan import check_ordinary
from he_protocol.privacy.quantise import Floats
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED

OptimiserName: TypeAlias = Literal["fedavgm", "fedadagrad", "fedadam", "fedyogi"]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Doubles: TypeAlias = npt.NDArray[np.float64]


class Optimiser(Message, frozen=True):
    """The step, and what it remembers from round to round (`state`).

    "fedavgm" (Hsu, Qi and Brown 2019): velocity = momentum * velocity + mean; model += rate * velocity. The others
    (Reddi et al., ICLR 2021, algorithm 2) give each coordinate a rate of its own: velocity = momentum * velocity +
    (1 - momentum) * mean; model += rate * velocity / (sqrt(squares) + adaptivity), with `squares` of past means, which
    forget at `squares_decay` ("fedadagrad" does not). rate = learning_rate / (1 + version / half_life), where there is
    a half_life: after so many versions it is half.
    """

    name: OptimiserName = "fedavgm"
    learning_rate: PositiveFloat = 1.0
    momentum: Fraction = 0.0
    squares_decay: Fraction = 0.99
    adaptivity: PositiveFloat = 1e-3
    half_life: Annotated[float, Meta(ge=0)] = 0.0

    @property
    def state(self) -> tuple[str, ...]:
        """The names of what is kept beside the model, each of its size."""
        return ("velocity", "squares") if self.name in SQUARES else ("velocity",)

    def check(self) -> None:
        """Raises `bad-plan`."""
        check_ordinary("aggregation.optimiser.learning_rate", self.learning_rate)
        check_ordinary("aggregation.optimiser.adaptivity", self.adaptivity)
        if self.half_life:
            check_ordinary("aggregation.optimiser.half_life", self.half_life)
        if self.name in SQUARES and not np.float32(self.adaptivity) ** 2 > 0:
            raise ProblemError(BAD_PLAN, "aggregation.optimiser.adaptivity is too small", got=self.adaptivity)

    def fresh(self, count: int) -> Floats:
        """The state before the first step, shape (len(state), count)."""
        begin = np.zeros((len(self.state), count), dtype=np.float32)
        begin[1:] = np.float32(self.adaptivity) ** 2
        return begin

    def rate(self, version: int) -> float:
        """The learning rate of the step from this version."""
        return self.learning_rate / (1 + version / self.half_life) if self.half_life else self.learning_rate

    def step(self, model: Floats, state: Floats, mean: Mean, version: int) -> tuple[Floats, Floats]:
        """The next model and state; the arguments are left as they are. Shapes (n,), (len(self.state), n), (n,).

        Raises `combine-refused` when the model, or what is remembered of it, would leave the range of float32.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            velocity = self.momentum * state[0].astype(np.float64)
            if squares_of := SQUARES.get(self.name):
                squares = squares_of(state[1].astype(np.float64), mean * mean, self.squares_decay)
                moved = np.stack([velocity + (1 - self.momentum) * mean, squares]).astype(np.float32)
                change = moved[0] / (np.sqrt(moved[1]) + np.float32(self.adaptivity))
            else:
                moved = (velocity + mean).astype(np.float32)[None]
                change = moved[0]
            after = (model + np.float32(self.rate(version)) * change).astype(np.float32)
        if not (np.isfinite(after).all() and np.isfinite(moved).all()):
            raise ProblemError(COMBINE_REFUSED, "the model would leave the range of float32")
        return after, moved


def _adagrad(before: Doubles, now: Doubles, decay: float) -> Doubles:
    return before + now


def _adam(before: Doubles, now: Doubles, decay: float) -> Doubles:
    return decay * before + (1 - decay) * now


def _yogi(before: Doubles, now: Doubles, decay: float) -> Doubles:
    return before - (1 - decay) * now * np.sign(before - now)


SQUARES: dict[OptimiserName, Callable[[Doubles, Doubles, float], Doubles]] = {
    "fedadagrad": _adagrad,
    "fedadam": _adam,
    "fedyogi": _yogi,
}
"""How the squares of means are remembered, by those that do."""
