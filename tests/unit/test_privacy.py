"""What the task's DP numbers mean: sensitivity, each client's noise, and epsilon."""

from __future__ import annotations

from math import hypot, inf, sqrt

import pytest
from msgspec.structs import replace

from he_protocol.messages import decode, encode
from he_protocol.privacy import PrivacyPlan, check_plan, epsilon, noise_std, sensitivity
from he_protocol.problems import BAD_PLAN, MALFORMED

from .refusals import refused

PLAN = PrivacyPlan("record", clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.01, delta=1e-5, epsilon_budget=2.0)


def test_epsilon_is_the_published_value():
    """Section 3 of the design: z=1, q=0.01, T=1000, delta=1e-5; the RDP accountant would say 2.1014."""
    assert round(epsilon(PLAN, 1000), 4) == 1.8282


def test_epsilon_grows_with_openings_and_falls_with_noise():
    assert epsilon(PLAN, 0) == 0
    assert 0 < epsilon(PLAN, 1) < epsilon(PLAN, 100) < epsilon(PLAN, 1000)
    assert epsilon(replace(PLAN, noise_multiplier=2.0), 100) < epsilon(PLAN, 100)


def test_without_sampling_it_is_the_gaussian_mechanism():
    """Balle and Wang 2018, theorem 8: delta(eps) of the Gaussian mechanism with T releases is that of std z/sqrt(T)."""
    from math import erfc, exp

    plan = PrivacyPlan("client", 1.0, 5.0, 1.0, 1e-5, 10.0)
    eps, mu = epsilon(plan, 4), sqrt(4) / 5.0

    def phi(x: float) -> float:
        return erfc(-x / sqrt(2)) / 2

    delta = phi(mu / 2 - eps / mu) - exp(eps) * phi(-mu / 2 - eps / mu)
    assert delta == pytest.approx(1e-5, rel=0.02)


def test_no_noise_no_promise():
    assert epsilon(PrivacyPlan("none"), 1) == inf
    assert epsilon(PrivacyPlan("none"), 0) == 0
    assert not PrivacyPlan("none").noisy
    check_plan(PrivacyPlan("none"))
    assert noise_std(PrivacyPlan("none"), scale=2.0**20, length=10, min_clients=1) == 0


def test_sensitivity_counts_rounding_and_weights():
    assert sensitivity(PLAN, scale=1024.0, length=100) == 1024 + 10
    assert sensitivity(replace(PLAN, clip_norm=3.0), scale=2.0, length=4, weight_range=4.0) == 5 * 2 + 2


def test_every_openable_sum_carries_the_noise():
    plan = replace(PLAN, noise_multiplier=0.8, max_corrupt=3)
    std = noise_std(plan, scale=1024.0, length=100, min_clients=19)
    assert sqrt(19 - 3) * std == pytest.approx(hypot(0.8 * (1024 + 10), 2))
    assert noise_std(plan, scale=1024.0, length=100, min_clients=4) == pytest.approx(hypot(0.8 * 1034, 2))
    weighted = noise_std(plan, scale=1024.0, length=100, min_clients=4, weight_range=2.0)
    assert weighted == pytest.approx(hypot(0.8 * (sqrt(5) * 1024 + 10), 2))


@pytest.mark.parametrize("max_corrupt", [10, 11, 1000])
def test_noise_needs_an_honest_client(max_corrupt):
    with refused(BAD_PLAN, "must exceed max_corrupt"):
        noise_std(replace(PLAN, max_corrupt=max_corrupt), scale=1.0, length=1, min_clients=10)


@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize("field", ["clip_norm", "noise_multiplier", "delta", "epsilon_budget"])
def test_a_promise_needs_its_numbers(unit, field):
    plan = replace(PLAN, unit=unit, sampling_rate=0.01 if unit == "record" else 1.0)
    check_plan(plan)
    with refused(BAD_PLAN, f"privacy.{field}"):
        check_plan(replace(plan, **{field: 0.0}))


def test_clients_that_were_not_sampled_amplify_nothing():
    """FIFO rounds take whoever comes: a sampling rate below one would understate epsilon."""
    with refused(BAD_PLAN, "amplification"):
        check_plan(replace(PLAN, unit="client"))


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "group"},
        {"clip_norm": -1.0},
        {"noise_multiplier": -0.1},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"delta": 1.0},
        {"delta": -1e-9},
        {"max_corrupt": -1},
    ],
)
def test_impossible_numbers_do_not_decode(change):
    with refused(MALFORMED):
        decode(encode(replace(PLAN, **change)), PrivacyPlan)
