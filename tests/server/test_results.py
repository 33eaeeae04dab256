"""What opened sums and weights can be, and which plans leave no way to tell."""

from __future__ import annotations

from dataclasses import replace
from math import hypot, log2, sqrt

import numpy as np
import pytest

from he_protocol.aggregation.weighting import Examples
from he_protocol.problems import BAD_PLAN, COMBINE_REFUSED, SUM_COULD_WRAP
from he_protocol.schemes.registry import load_scheme
from he_server.rules import aggregation
from he_server.rules.aggregation import check_range, mean_of, weight_of
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.protocol.test_sum_bounds import CLIENT, plan
from tests.protocol.test_task import kahe_config

WEIGHTED = changed(kahe_config("kahe-30"), weighting="examples", scale=2.0**20, weight_cap=100.0)


def test_a_sum_of_few_updates_has_a_smaller_range_than_one_of_many():
    sums = plan(privacy=CLIENT, clients=100)
    assert sums.largest(1024.0) == sums.largest(1024.0, 100)
    assert sums.largest(1024.0, 4) == 4 * 1025 + sums.deviations * 2 * hypot(sums.noise_std(1024.0), 6.4)


def test_integers_out_of_range_are_no_sum():
    for value in (1000, -1000):
        check_range(np.array([0, value]), 1000.0)
        with expect_problem(COMBINE_REFUSED, "out of range"):
            check_range(np.array([0, value + (1 if value > 0 else -1)]), 1000.0)
    with expect_problem(COMBINE_REFUSED):
        check_range(np.array([np.iinfo(np.int64).min]), 1000.0)


@pytest.mark.parametrize(("profile", "parameters"), [("kahe-14", 512), ("kahe-14", 511), ("kahe-20", 1024)])
def test_a_scale_that_fills_the_modulus_is_refused(profile, parameters):
    """Without padding, or with little, nearly any integers would be a plausible sum."""
    sums = replace(plan(profile, clients=20), length=parameters)
    full = (sums.scheme.capacity - sums.largest(0.0)) / 20
    sums.check(0.9 * full)
    with expect_problem(SUM_COULD_WRAP, "a wrong one could pass"):
        sums.check(0.999 * full)
    assert sums.largest_scale() <= 0.9 * full


def test_a_small_model_is_checked_by_its_padding():
    """Eight parameters: 2,040 coefficients carry nothing but errors, at most 51 an update."""
    scheme = load_scheme("kahe", "kahe-30")
    assert scheme.garbage_bits(scheme.capacity, 8, 10) == pytest.approx(2040 * log2(1073692673 / 1025), rel=1e-3)
    assert load_scheme("ckks", "ckks-8192").garbage_bits(1.0, 8, 10) == 4096


def test_garbage_passes_as_often_as_said():
    """A range of 0.9 of the modulus, eight coefficients: 0.43 of random ones."""
    q, largest = 12289, 5530
    draws = np.random.default_rng(1).integers(-(q // 2), q // 2 + 1, (20_000, 8))
    passed = np.mean(np.abs(draws).max(axis=1) <= largest)
    assert passed == pytest.approx(((2 * largest + 1) / q) ** 8, abs=0.02)


@pytest.mark.parametrize(("cap", "ok"), [(1e2, True), (5000.0, True), (5200.0, False), (1e8, False)])
def test_a_weight_cap_that_drowns_one_example_is_refused(cap, ok):
    """2^20 by cap must be 32 deviations of an update's own error, hypot(6.4, 0.5): cap is at most 5,104."""
    config = changed(WEIGHTED, weight_cap=cap)
    if ok:
        config.check()
        return
    with expect_problem(BAD_PLAN, "weight_cap up to 5104"):
        config.check()


def test_what_a_drowned_weight_would_have_published():
    """Scale 2^26, cap 1e8, one example of each of 3 clients: 0.67 units a client, under an error of 6.4."""
    rng, scale, weight = np.random.default_rng(3), 2.0**26, 1e-8
    found = []
    for _ in range(200):
        errors = np.rint(rng.normal(0, 6.4 * sqrt(3), 2))
        summed = np.rint(3 * weight * scale * np.array([0.25, 1.0])) + errors
        found.append(summed[0] / summed[1] if summed[1] > 0 else np.inf)
    assert np.mean(np.abs(np.array(found) - 0.25) < 0.1) < 0.2
    config = changed(WEIGHTED, scale=scale, weight_cap=1e8, max_clients=3)
    with expect_problem(BAD_PLAN, "drowns"):
        config.check()


def test_a_summed_weight_must_be_one_that_updates_can_have():
    one = 2**20
    most = 4 * (one + 1) + WEIGHTED.sum_plan.deviations * 2 * 6.4
    for final, good in ((4 * one, True), (one // 100, True), (one // 300, False), (300, False), (-one, False)):
        if good:
            assert weight_of(WEIGHTED, final, 4, 4) == pytest.approx(final / one)
            continue
        with expect_problem(COMBINE_REFUSED, "summed weight"):
            weight_of(WEIGHTED, final, 4, 4)
    weight_of(WEIGHTED, int(most), 4, 4)
    with expect_problem(COMBINE_REFUSED, "summed weight"):
        weight_of(WEIGHTED, int(most) + 1, 4, 4)


def test_under_dp_noise_any_positive_weight_can_be():
    """Noise hides one client's weight, so the sum of a few may be noise for the most part."""
    noisy = changed(WEIGHTED, privacy=CLIENT, scale=2.0**16, weight_cap=50.0, min_clients=3)
    assert Examples(1.0, 50.0).summed(noisy.sum_plan, noisy.encryption.scale, 3)[0] < 0
    assert weight_of(noisy, 1, 3, 3) > 0
    with expect_problem(COMBINE_REFUSED, "summed weight"):
        weight_of(noisy, 0, 3, 3)


@pytest.mark.parametrize("combination", ["mean", "median", "trimmed-mean"])
@pytest.mark.parametrize(("weighting", "largest"), [("uniform", 1.0), ("examples", 1.0), ("fixed", 12 / 30)])
def test_no_coordinate_of_a_mean_exceeds_what_honest_updates_come_to(
    combination, weighting, largest, monkeypatch: pytest.MonkeyPatch
):
    """Uniform: their average. Fixed: 12 updates by the records that were expected, 30."""
    plan = {"weighting": weighting, "combination": combination, "weight_cap": 30.0, "buckets": 4, "max_clients": 12}
    config = changed(WEIGHTED, value_range=1.0, **plan)
    weights = [weight_of(config, 2**20, 3, 12)] * 4
    huge = [np.array([2**30, -(2**30), 2**10])] * 4
    mean = mean_of(huge, weights, config)
    np.testing.assert_allclose(mean[:2], [largest, -largest])
    assert 0 < mean[2] < largest
    monkeypatch.setattr(aggregation, "largest_mean", lambda _: np.inf)
    assert np.abs(mean_of(huge, weights, config)[:2]).min() > 30
