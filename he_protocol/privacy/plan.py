"""Differential privacy of what is opened: the plan, sensitivity, each client's noise, and what it costs.

`he_protocol.privacy.accountant` has the numbers behind `epsilon`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import hypot, inf, isfinite, log, sqrt
from typing import Annotated, Literal

from msgspec import Meta

from he_protocol.errors import ProblemError
from he_protocol.messages import Message
from he_protocol.privacy.accountant import Release, Spent, account
from he_protocol.problems import BAD_PLAN, BUDGET_EXHAUSTED

NonNegative = Annotated[float, Meta(ge=0)]

NEIGHBOURS = {"client": "zero-out one client", "record": "add or remove one record", "none": ""}
"""The neighbouring relations, by unit (ADR 22)."""
LEAST_STD = 3.5
"""Of one client's integer noise. Sums of discrete Gaussians of this deviation are one discrete Gaussian, up to a factor
e^(1e-9) over all coordinates and openings that a task can have (Kairouz, Liu and Steinke, ICML 2021; ADR 22)."""
ROUNDING_DELTA = 2.0**-60
"""That rounding moves an update further than `sensitivity` says: taken off delta for every opening (ADR 33)."""
SMOOTHING_STD = 2.0
"""So much more noise makes the discrete Gaussian a rounding of the continuous one that is accounted for (ADR 22)."""


class PrivacyPlan(Message, frozen=True):
    """The task's DP promise, for every sum that can be opened.

    unit: "record" (DP-FedSGD with secret Poisson sampling at `sampling_rate`), "client" (the whole
    clipped update; no amplification is claimed), or "none". Neighbours are by the unit: with "record", a client has one
    record more or less (add-or-remove); with "client", one client's update is zero instead (zero-out; to replace it by
    any other update would need twice the sensitivity). That a client took part is public either way.
    epsilon_budget: at `delta`, of all openings of this epoch; clients also hold it against all that their updates to
    the job, earlier epochs included, can have cost.
    """

    unit: Literal["record", "client", "none"]
    clip_norm: NonNegative = 0.0
    noise_multiplier: NonNegative = 0.0
    sampling_rate: Annotated[float, Meta(gt=0, le=1)] = 1.0
    delta: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    epsilon_budget: NonNegative = 0.0
    max_corrupt: Annotated[int, Meta(ge=0)] = 0

    @property
    def noisy(self) -> bool:
        return self.unit != "none"

    @property
    def neighbours(self) -> str:
        """What the promise hides: the neighbouring relation, by name."""
        return NEIGHBOURS[self.unit]

    def check(self) -> None:
        """Refuse a plan that promises DP without the numbers for it. Raises `bad-plan`."""
        if not self.noisy:
            return
        for field in ("clip_norm", "noise_multiplier", "sampling_rate", "delta", "epsilon_budget"):
            check_ordinary(f"privacy.{field} of unit {self.unit!r}", getattr(self, field))
        if not (self.sampling_rate <= 1 and self.delta < 1):
            raise ProblemError(BAD_PLAN, "privacy.sampling_rate is at most 1, and privacy.delta below it")
        if self.unit == "client" and self.sampling_rate != 1.0:
            raise ProblemError(
                BAD_PLAN, "no subsampling amplification is claimed for unit 'client'", expected="sampling_rate 1"
            )


def check_ordinary(name: str, value: float) -> None:
    """Refuse a number of a plan that is not positive, not finite, or so small that arithmetic loses its digits (a
    subnormal one)."""
    if not (isfinite(value) and value >= sys.float_info.min):
        raise ProblemError(BAD_PLAN, name, expected="> 0 and finite", got=value)


def check_budget(plan: PrivacyPlan, openings: int) -> None:
    """A task's whole budget of openings stays within the epsilon that it promises. Raises `budget-exhausted`."""
    if plan.noisy and (cost := epsilon(plan, openings)) > plan.epsilon_budget:
        raise ProblemError(
            BUDGET_EXHAUSTED,
            f"{openings} openings cost more than the task promises",
            expected=f"epsilon at most {plan.epsilon_budget}",
            got=f"{cost:.4f}",
        )


def sensitivity(plan: PrivacyPlan, *, scale: float, length: int, weight_range: float = 0.0) -> float:
    """L2 sensitivity of one client's or record's integers, of a vector of `length` coordinates.

    `weight_range` is the norm of what is appended to the model's coordinates. Exceeded with probability
    `ROUNDING_DELTA`.

    Rounding is floor(x + u) with a dither u. Under one u, two neighbours' roundings differ by a stochastic rounding of
    their difference g, |g| <= c: its square sums to c^2 + length/4 on average, and to little more (ADR 33).
    """
    moved, root = hypot(plan.clip_norm, weight_range) * scale, sqrt(length)
    likely = hypot(moved, root / 2, sqrt(sqrt(-2 * log(ROUNDING_DELTA)) * (moved + root / 2)))
    return min(likely, moved + root)


def noise_std(plan: PrivacyPlan, *, scale: float, length: int, min_clients: int, weight_range: float = 0.0) -> float:
    """Standard deviation of the integer noise that each client adds, so that any sum of at least
    `min_clients - max_corrupt` honest ones carries noise_multiplier * sensitivity, and `SMOOTHING_STD`."""
    if not plan.noisy:
        return 0.0
    honest = min_clients - plan.max_corrupt
    if honest < 1:
        raise ProblemError(
            BAD_PLAN, "rounds.min_clients must exceed privacy.max_corrupt", got=f"{min_clients} - {plan.max_corrupt}"
        )
    bound = sensitivity(plan, scale=scale, length=length, weight_range=weight_range)
    return hypot(plan.noise_multiplier * bound, SMOOTHING_STD) / sqrt(honest)


def check_noise(plan: PrivacyPlan, std: float) -> None:
    """Refuse a client's noise that is too narrow for sums of it to be what the accountant takes them for.

    At the extreme every client's noise is always 0, and so is that of the sum.
    """
    if plan.noisy and not LEAST_STD <= std < inf:
        raise ProblemError(
            BAD_PLAN,
            "each client's integer noise is too narrow; raise encryption.scale or privacy.noise_multiplier, or lower"
            " rounds.min_clients",
            expected=f"a standard deviation of at least {LEAST_STD}",
            got=f"{std:.4g}",
        )


def spent(plan: PrivacyPlan, openings: int) -> Spent:
    """Epsilon at the plan's delta after `openings` opened rounds, and how it was found; infinite without noise.

    A round costs as much as one sum, however many buckets it is opened in: a client is in one of them, each carries
    the noise of `min_clients`, and who is in which does not depend on anybody's data (parallel composition, McSherry
    2009). Neighbours are as `PrivacyPlan.neighbours` says; who took part everybody may know.
    """
    return spent_together([(plan, openings)], plan)


def spent_together(used: Iterable[tuple[PrivacyPlan, int]], promise: PrivacyPlan) -> Spent:
    """What openings under several plans cost together, by `promise`'s neighbouring relation, at its delta.

    A client-level opening hides a record too, at twice the sensitivity: one update is replaced by another. A
    record-level one promises nothing for a whole client, and one without noise nothing at all.
    """
    releases, delta = [], promise.delta
    for plan, openings in used:
        if openings == 0:
            continue
        if not promise.noisy or plan.unit not in {"client", promise.unit}:
            return Spent(inf, "none")
        noise = plan.noise_multiplier if plan.unit == promise.unit else plan.noise_multiplier / 2
        releases.append(Release(noise, plan.sampling_rate if plan.unit == "record" else 1.0, openings))
        delta -= openings * ROUNDING_DELTA
    return account(releases, delta)


def epsilon(plan: PrivacyPlan, openings: int) -> float:
    """The epsilon of `spent`.

    >>> round(epsilon(PrivacyPlan("record", 1.0, 1.0, 0.01, 1e-5, 2.0), 1000), 4)
    1.8282
    """
    return spent(plan, openings).epsilon
