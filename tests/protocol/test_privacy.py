"""What the task's DP numbers mean: sensitivity, each client's noise, and epsilon."""

from __future__ import annotations

from math import exp, hypot, inf, isfinite, log, pi, sqrt

import numpy as np
import pytest
from msgspec.structs import replace

from he_protocol.messages import from_json, to_json
from he_protocol.privacy.accountant import Release, account
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.plan import (
    LEAST_STD,
    ROUNDING_DELTA,
    PrivacyPlan,
    check_noise,
    epsilon,
    noise_std,
    sensitivity,
    spent,
    spent_together,
)
from he_protocol.privacy.quantise import quantise
from he_protocol.problems import BAD_PLAN, MALFORMED
from he_protocol.schemes.registry import load_scheme
from he_protocol.sum_bounds import SumPlan
from he_testing.problems import expect_problem

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
    PrivacyPlan("none").check()
    assert noise_std(PrivacyPlan("none"), scale=2.0**20, length=10, min_clients=1) == 0


DRAWN = sqrt(2 * 60 * log(2))
"""sqrt(2 ln(1 / beta)) for beta = 2^-60."""


def test_sensitivity_counts_rounding_and_weights():
    assert sensitivity(PLAN, scale=1024.0, length=100) == pytest.approx(sqrt(1024**2 + 25 + DRAWN * (1024 + 5)))
    assert sensitivity(replace(PLAN, clip_norm=3.0), scale=2.0, length=4, weight_range=4.0) == 5 * 2 + 2  # a sure bound
    assert sensitivity(replace(PLAN, clip_norm=1e300), scale=1e5, length=4) == pytest.approx(1e305)


@pytest.mark.parametrize(
    "g",
    [
        np.full(3000, 0.5), np.full(3000, -0.5), np.full(3000, 1.5), np.full(3000, 1e-3), np.zeros(3000),
        np.arange(3000) / 1000, np.r_[np.full(2999, 0.5), 1000.0], np.r_[np.zeros(2999), 30.25], np.full(9, 0.5),
    ],
    ids=lambda g: f"{len(g)} around {np.abs(g).mean():.3g}",
)  # fmt: skip
def test_rounding_moves_neighbours_no_further_than_is_accounted_for(g: np.ndarray) -> None:
    """What clients' kernel does to two neighbours under one dither, 4,000 times: the largest stays below the bound, and
    not far below where all coordinates are halves."""
    rng = np.random.default_rng(1)
    bound = sensitivity(replace(PLAN, clip_norm=float(np.linalg.norm(g))), scale=1.0, length=len(g))
    before = (rng.standard_normal(len(g)) * 40).astype(np.float32)
    after = (before + g).astype(np.float32)
    largest = 0.0
    for _ in range(4000):
        words = rng.integers(0, 1 << 32, len(g), dtype=np.uint32)
        moved = quantise(after, 1.0, 1e6, words) - quantise(before, 1.0, 1e6, words)
        largest = max(largest, float(np.linalg.norm(moved)))
    assert largest <= bound
    assert bound <= np.linalg.norm(g) + sqrt(len(g))
    if len(g) > 9 and np.abs(g).max() == 0.5:
        assert largest > bound / 1.2


def test_what_rounding_may_do_is_taken_off_delta() -> None:
    """Off: a delta that is smaller than what rounding alone may cost would be promised."""
    plan = replace(PLAN, unit="client", sampling_rate=1.0, delta=1000 * ROUNDING_DELTA)
    assert isfinite(spent(plan, 999).epsilon)
    assert spent(plan, 1000).epsilon == inf
    assert isfinite(account([Release(plan.noise_multiplier, 1.0, 1000)], plan.delta).epsilon)
    several = spent_together([(plan, 500), (replace(plan, clip_norm=2.0), 500)], plan)
    assert several.epsilon == inf


def test_every_openable_sum_carries_the_noise():
    plan = replace(PLAN, noise_multiplier=0.8, max_corrupt=3)
    std = noise_std(plan, scale=1024.0, length=100, min_clients=19)
    alone = sensitivity(plan, scale=1024.0, length=100)
    assert sqrt(19 - 3) * std == pytest.approx(hypot(0.8 * alone, 2))
    assert noise_std(plan, scale=1024.0, length=100, min_clients=4) == pytest.approx(hypot(0.8 * alone, 2))
    weighted = noise_std(plan, scale=1024.0, length=100, min_clients=4, weight_range=2.0)
    with_weight = sensitivity(plan, scale=1024.0, length=100, weight_range=2.0)
    assert weighted == pytest.approx(hypot(0.8 * with_weight, 2))
    assert with_weight > sqrt(5) * 1024


@pytest.mark.parametrize("max_corrupt", [10, 11, 1000])
def test_noise_needs_an_honest_client(max_corrupt):
    with expect_problem(BAD_PLAN, "must exceed privacy.max_corrupt"):
        noise_std(replace(PLAN, max_corrupt=max_corrupt), scale=1.0, length=1, min_clients=10)


@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize("field", ["clip_norm", "noise_multiplier", "delta", "epsilon_budget"])
def test_a_promise_needs_its_numbers(unit, field):
    plan = replace(PLAN, unit=unit, sampling_rate=0.01 if unit == "record" else 1.0)
    plan.check()
    with expect_problem(BAD_PLAN, f"privacy.{field}"):
        replace(plan, **{field: 0.0}).check()


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize(("scheme", "profile"), [("ckks", "ckks-8192"), ("kahe", "kahe-30")])
@pytest.mark.parametrize(("length", "clients"), [(4, 1000), (50, 10_000), (1, 400)])
def test_noise_that_rounds_away_is_refused(unit, scheme, profile, length, clients, defence, monkeypatch):
    """With the check off: every client's discrete Gaussian is 0, so the sum has none of the noise that is promised."""
    plan = replace(PLAN, unit=unit, sampling_rate=0.01 if unit == "record" else 1.0)
    sums = SumPlan(load_scheme(scheme, profile), plan, length, clients, clients, 1.0, 100)
    if defence:
        with expect_problem(BAD_PLAN, "too narrow"):
            sums.check(1.0)
        return
    monkeypatch.setattr("he_protocol.sum_bounds.check_noise", lambda *_: None)
    sums.check(1.0)
    std = sums.noise_std(1.0)
    sampler = Gaussian(std)
    words = np.random.default_rng(1).integers(0, 1 << 64, sampler.words(clients), dtype=np.uint64)
    assert std < 0.2
    assert not sampler.sample(words, clients).any()


def test_the_least_deviation_covers_every_task_that_can_be_written_down():
    """ADR 22: 10 * n * exp(-pi^2 s^2), by coordinates and openings, is what the sums cost in epsilon."""
    assert 10 * 2.0 ** (53 + 30 + 53) * exp(-((pi * LEAST_STD) ** 2)) < 1e-9
    check_noise(PrivacyPlan("none"), 0.0)
    check_noise(PLAN, LEAST_STD)
    for std in (LEAST_STD * 0.999, inf, float("nan")):
        with expect_problem(BAD_PLAN, "too narrow"):
            check_noise(PLAN, std)


def test_neighbours_are_named_and_the_promise_is_theirs():
    """Zero-out moves the sum by the sensitivity. Another update in its place moves it twice as far: not promised."""
    client = replace(PLAN, unit="client", sampling_rate=1.0)
    assert (client.neighbours, PLAN.neighbours) == ("zero-out one client", "add or remove one record")
    assert PrivacyPlan("none").neighbours == ""
    assert epsilon(client, 1) == pytest.approx(4.3772, abs=1e-4)
    assert epsilon(replace(client, noise_multiplier=0.5), 1) == pytest.approx(9.997, abs=1e-3)


def test_clients_that_were_not_sampled_amplify_nothing():
    """FIFO rounds take whoever comes: a sampling rate below one would understate epsilon."""
    with expect_problem(BAD_PLAN, "amplification"):
        replace(PLAN, unit="client").check()


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
    with expect_problem(MALFORMED):
        from_json(to_json(replace(PLAN, **change)), PrivacyPlan)
