"""What a sum can hold: the error of a mean as predicted, and the profile that a plan recommends."""

from __future__ import annotations

from dataclasses import replace
from math import exp, hypot, sqrt
from typing import Any

import pytest

from he_protocol.privacy.plan import PrivacyPlan, sensitivity
from he_protocol.problems import BAD_PLAN, SUM_COULD_WRAP
from he_protocol.schemes.registry import load_scheme
from he_protocol.sharing import Sharing
from he_protocol.sum_bounds import SumPlan, plan_sums
from he_testing.problems import expect_problem

NONE = PrivacyPlan("none")
CLIENT = PrivacyPlan("client", 1.0, 1.0, 1.0, 1e-5, 8.0)
RECORD = PrivacyPlan("record", 1.0, 1.0, 0.01, 1e-5, 8.0)
THREE = Sharing(3, 2)


def plan(profile: str = "kahe-30", privacy: PrivacyPlan = NONE, clients: int = 1000, **changes: Any) -> SumPlan:
    scheme = load_scheme(profile.split("-", maxsplit=1)[0], profile)
    return SumPlan(scheme, privacy, 10_000, 3, clients, **{"value_range": 1.0, "openings": 100} | changes)


@pytest.mark.parametrize("profile", ["kahe-30", "kahe-20", "kahe-18", "kahe-16", "kahe-14", "ckks-8192"])
@pytest.mark.parametrize("clients", [3, 50])
def test_the_largest_scale_fits_and_twice_it_does_not(profile, clients):
    sums = plan(profile, clients=clients)
    scale = sums.largest_scale()
    sums.check(scale)
    assert sums.largest(scale) <= sums.scheme.capacity < sums.largest(2 * scale)
    with expect_problem(SUM_COULD_WRAP):
        sums.check(2 * scale)


def test_no_scale_fits_too_many_clients():
    with expect_problem(SUM_COULD_WRAP, "no scale"):
        plan("kahe-14", clients=10_000).largest_scale()


def test_errors_are_the_designs():
    """DESIGN.md, section 5: 3.9e-7 for kahe-30 at n = 1000 (`tests/holder/test_kahe_precision.py` measures it)."""
    sums = plan()
    assert sums.largest_scale() == 2.0**19
    assert sums.mean_error(2.0**19, 1000) == pytest.approx(3.87e-7, rel=1e-3)
    noisy = plan(privacy=CLIENT)
    alone = sensitivity(CLIENT, scale=1024.0, length=10_000)
    assert noisy.mean_noise(1024.0, 100) == pytest.approx(hypot(alone, 2) / sqrt(3) / (10 * 1024))
    assert plan(privacy=CLIENT, appended_range=1.0).noise_std(1024.0) > noisy.noise_std(1024.0)
    assert 3.75 < sums.bytes_per_parameter(THREE) < 6


@pytest.mark.parametrize(
    ("length", "openings", "deviations"), [(10_000, 100, 9.19), (1, 1, 7.54), (1 << 30, 1 << 20, 11.23)]
)
def test_noise_carries_no_integer_beyond_a_sum(length: int, openings: int, deviations: float) -> None:
    """Two-sided Gaussian tails of all integers of all openings together: 2^-40."""
    sums = replace(plan(privacy=CLIENT, openings=openings), length=length)
    assert sums.deviations == pytest.approx(deviations, abs=0.01)
    assert 2 * exp(-(sums.deviations**2) / 2) * length * openings == pytest.approx(2.0**-40)


def offers(privacy: PrivacyPlan, **changes: Any):
    numbers: dict[str, Any] = {
        "length": 100_000,
        "min_clients": 10,
        "max_clients": 50,
        "sharing": THREE,
        "openings": 100,
    }
    return plan_sums(privacy, **numbers | changes)


def test_every_profile_makes_an_offer_and_the_smallest_that_fits_comes_first():
    made = offers(NONE, value_range=1.0)
    assert {offer.profile for offer in made} == {"kahe-30", "kahe-20", "kahe-18", "kahe-16", "kahe-14", "ckks-8192"}
    assert made[0].profile == "kahe-30"
    fitting = [offer for offer in made if not offer.refusal]
    assert made[: len(fitting)] == fitting
    assert [o.bytes_per_parameter for o in fitting] == sorted(o.bytes_per_parameter for o in fitting)
    assert all("above" in offer.refusal or "scale" in offer.refusal for offer in made[len(fitting) :])


def test_coarser_wishes_take_fewer_bytes():
    assert offers(NONE, value_range=1.0, accuracy=1e-2)[0].profile == "kahe-16"
    assert offers(NONE, value_range=1.0, accuracy=5e-4)[0].profile == "kahe-18"
    assert offers(NONE, value_range=1.0, accuracy=2e-4)[0].profile == "kahe-20"
    assert offers(NONE, value_range=1.0, accuracy=1e-10)[0].profile == "ckks-8192"
    assert all(offer.refusal for offer in offers(NONE, value_range=1.0, accuracy=1e-12))


def test_dp_noise_makes_small_profiles_good_enough():
    best = offers(CLIENT)[0]
    assert best.mean_error <= 0.1 * best.mean_noise
    assert best.value_range == pytest.approx(16 / sqrt(100_000))
    assert best.bytes_per_parameter < 3.75


@pytest.mark.parametrize("privacy", [NONE, RECORD])
def test_without_a_clip_of_the_client_the_range_must_be_given(privacy):
    with expect_problem(BAD_PLAN, "value_range is needed"):
        offers(privacy)


def test_an_offer_says_why_it_does_not_fit():
    by_name = {offer.profile: offer for offer in offers(NONE, value_range=1.0, openings=1 << 40)}
    assert "flooding" in by_name["ckks-8192"].refusal
    assert "no scale" in {o.profile: o for o in offers(NONE, value_range=1e6, accuracy=1e9)}["kahe-14"].refusal
