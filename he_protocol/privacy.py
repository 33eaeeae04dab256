"""Differential privacy of what is opened: sensitivity, each client's noise, and the accountant.

Accounting is Google's dp-accounting (privacy loss distributions; Doroshenko et al., PETS 2022),
imported only when an epsilon is asked for.
"""

from __future__ import annotations

from functools import lru_cache
from math import hypot, inf, sqrt
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from he_protocol.messages import Message
from he_protocol.problems import BAD_PLAN, Refusal

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

NonNegative = Annotated[float, Meta(ge=0)]


class PrivacyPlan(Message, frozen=True):
    """The task's DP promise, for every sum that can be opened.

    unit: "record" (DP-FedSGD with secret Poisson sampling at `sampling_rate`), "client" (the whole
    clipped update; no amplification is claimed), or "none".
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


def check_plan(plan: PrivacyPlan) -> None:
    """Refuse a plan that promises DP without the numbers for it."""
    if not plan.noisy:
        return
    for field in ("clip_norm", "noise_multiplier", "delta", "epsilon_budget"):
        if not getattr(plan, field) > 0:
            raise Refusal(BAD_PLAN, f"privacy.{field} is needed for unit {plan.unit!r}", expected="> 0")
    if plan.unit == "client" and plan.sampling_rate != 1.0:
        raise Refusal(BAD_PLAN, "no subsampling amplification is claimed for unit 'client'", expected="sampling_rate 1")


def sensitivity(plan: PrivacyPlan, *, scale: float, length: int, weight_range: float = 0.0) -> float:
    """L2 sensitivity of one client's or record's integers, of a vector of `length` coordinates.

    `weight_range` is the largest value of the weight coordinate (0 without weighting). Stochastic
    rounding moves every coordinate by less than one, so the norm by less than sqrt(length).
    """
    return hypot(plan.clip_norm, weight_range) * scale + sqrt(length)


def noise_std(plan: PrivacyPlan, *, scale: float, length: int, min_clients: int, weight_range: float = 0.0) -> float:
    """Standard deviation of the integer noise that each client adds, so that any sum of at least
    `min_clients - max_corrupt` honest ones carries noise_multiplier * sensitivity."""
    if not plan.noisy:
        return 0.0
    honest = min_clients - plan.max_corrupt
    if honest < 1:
        raise Refusal(BAD_PLAN, "min_clients must exceed max_corrupt", got=f"{min_clients} - {plan.max_corrupt}")
    bound = sensitivity(plan, scale=scale, length=length, weight_range=weight_range)
    return plan.noise_multiplier * bound / sqrt(honest)


def epsilon(plan: PrivacyPlan, openings: int) -> float:
    """Epsilon at the plan's delta after `openings` opened rounds; infinite without noise.

    A round costs as much as one sum, however many buckets it is opened in: a client is in one of them, each carries
    the noise of `min_clients`, and who is in which does not depend on anybody's data (parallel composition, McSherry
    2009). Neighbours differ in what one client sent, not in whether it took part, which everybody may know.

    >>> round(epsilon(PrivacyPlan("record", 1.0, 1.0, 0.01, 1e-5, 2.0), 1000), 4)
    1.8282
    """
    if openings == 0:
        return 0.0
    if not plan.noisy:
        return inf
    return _epsilon(plan.noise_multiplier, plan.sampling_rate, plan.delta, openings)


@lru_cache(maxsize=1024)
def _epsilon(noise_multiplier: float, sampling_rate: float, delta: float, openings: int) -> float:
    return float(_one_opening(noise_multiplier, sampling_rate).self_compose(openings).get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)
def _one_opening(noise_multiplier: float, sampling_rate: float) -> PrivacyLossDistribution:
    """What dp-accounting's PLDAccountant composes: to make it takes longer than to compose it a hundred times."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(noise_multiplier, sampling_prob=sampling_rate)
