"""The accountant: exact where there is a formula, dp-accounting's values where not, and quick for every input."""

from __future__ import annotations

import subprocess
import sys
import time
from math import inf, sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_protocol.privacy.accountant import Release, Spent, _gaussian, _renyi, account, gaussian_epsilon


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """dp-accounting takes a second to import, once."""
    account([Release(1.0, 0.5, 2)], 1e-5)


SECONDS = 2.0
"""Twice what is promised: tests share their cores."""


def delta_of(epsilon: float, mean: float) -> float:
    """Balle and Wang 2018, theorem 8, in 60 digits."""
    import mpmath

    with mpmath.workdps(60):
        e, m = mpmath.mpf(epsilon), mpmath.mpf(mean)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


@pytest.mark.parametrize("mean", [1e-12, 1e-7, 9.9e-5, 1.01e-4, 1e-2, 0.3, 1.0, 7.0, 300.0, 1e6])
@pytest.mark.parametrize("delta", [1e-300, 1e-30, 1e-10, 1e-5, 0.01, 0.4, 0.999])
def test_the_gaussian_is_exact_and_never_too_small(mean: float, delta: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    epsilon = gaussian_epsilon(mean, delta)
    assert epsilon >= 0
    assert delta_of(epsilon * (1 + 1e-12), mean) <= delta * (1 + mpmath.mpf("1e-6"))
    if epsilon > 0:
        assert delta_of(epsilon * (1 - 1e-7), mean) > delta * (1 - mpmath.mpf("1e-6"))


def test_releases_without_sampling_are_one_gaussian() -> None:
    assert account([Release(2.0, 1.0, 9)], 1e-5).epsilon == pytest.approx(gaussian_epsilon(1.5, 1e-5))
    mixed = account([Release(2.0, 1.0, 4), Release(1.0, 1.0, 1), Release(2.0, 1.0, 4)], 1e-5)
    assert mixed == Spent(pytest.approx(gaussian_epsilon(sqrt(3), 1e-5)), "gaussian")  # type: ignore[arg-type]


CASES = [(1.0, 0.01, 1000, 1e-5), (0.6, 0.1, 30, 1e-6), (3.0, 0.4, 20, 1e-7), (10.0, 0.01, 500, 1e-5)]


@pytest.mark.parametrize(("noise", "rate", "count", "delta"), CASES)
def test_sampled_releases_are_dp_accountings(noise: float, rate: float, count: int, delta: float) -> None:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    spent = account([Release(noise, rate, count)], delta)
    theirs = from_gaussian_mechanism(noise, sampling_prob=rate).self_compose(count).get_epsilon_for_delta(delta)
    assert spent == Spent(pytest.approx(theirs, rel=2e-3), "pld")  # type: ignore[arg-type]
    release = (Release(noise, rate, count),)
    assert spent.epsilon < min(_renyi(release, delta), _gaussian(release, delta))


def test_different_sampled_releases_compose() -> None:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    first, second = (from_gaussian_mechanism(z, sampling_prob=q) for z, q in ((1.0, 0.02), (2.0, 0.2)))
    theirs = first.self_compose(50).compose(second.self_compose(30)).get_epsilon_for_delta(1e-5)
    assert account([Release(1.0, 0.02, 50), Release(2.0, 0.2, 30)], 1e-5).epsilon == pytest.approx(theirs, rel=2e-3)


def test_the_fallback_is_named_and_sound() -> None:
    """Mironov's sampled Gaussian, by dp-accounting's own orders; ours are whole numbers and a little looser."""
    assert account([Release(1.0, 0.01, 1000)], 1e-30).method == "rdp"
    renyi = _renyi((Release(1.0, 0.01, 1000),), 1e-5)
    assert 2.1014 <= renyi < 2.12
    assert account([Release(0.01, 0.5, 10)], 1e-5).method == "gaussian"  # the sampling is left out: it helps nothing


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert account([], 1e-5) == account([Release(1.0, 1.0, 0)], 1e-5) == Spent(0.0, "none")
    for noise, delta in ((0.0, 1e-5), (-1.0, 1e-5), (float("nan"), 1e-5), (inf, 1e-5), (1.0, 0.0), (1.0, float("nan"))):
        assert account([Release(noise, 1.0, 1)], delta).epsilon == inf
    assert account([Release(1.0, float("nan"), 3)], 1e-5) == account([Release(1.0, 1.0, 3)], 1e-5)


def test_no_sampling_needs_no_dp_accounting() -> None:
    program = """
import sys
sys.modules["dp_accounting"] = sys.modules["scipy"] = None
from he_protocol.privacy.accountant import Release, account
print(account([Release(1.0, 1.0, 1)], 1e-5).method)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "gaussian"


noises = st.one_of(st.floats(0.2, 5.0), st.floats(-6, 9).map(lambda x: 10.0**x), st.sampled_from([1e-300, 0.01, 0.05]))
rates = st.one_of(st.floats(0.001, 0.999), st.floats(-9, 0).map(lambda x: 10.0**x))
counts = st.one_of(st.integers(1, 5000), st.floats(0, 9).map(lambda x: int(10.0**x)))
deltas = st.one_of(st.floats(-10, -2).map(lambda x: 10.0**x), st.sampled_from([1e-300, 0.999]))


def timed(release: Release, delta: float) -> Spent:
    before = time.process_time()
    spent = account([release], delta)
    assert time.process_time() - before < SECONDS
    assert spent.epsilon >= 0
    return spent


def at_most(less: Spent, more: Spent) -> bool:
    """Discretisation errs upwards, by up to two percent where losses are tiny; two methods' bounds need not nest."""
    return less.method != more.method or less.epsilon <= more.epsilon * 1.02 + 1e-9


@settings(deadline=None, max_examples=60, derandomize=True)
@given(noises, rates, counts, deltas, st.floats(1.0, 10.0))
def test_any_plan_is_quick_and_costs_more_by_openings_and_less_by_noise(
    noise: float, rate: float, count: int, delta: float, more: float
) -> None:
    account([Release(1.0, 0.01, 10)], 1e-5)  # the first one imports dp-accounting
    spent = timed(Release(noise, rate, count), delta)
    assert at_most(spent, timed(Release(noise, rate, int(count * more)), delta))
    assert at_most(timed(Release(noise * more, rate, count), delta), spent)
    assert spent.epsilon <= timed(Release(noise, 1.0, count), delta).epsilon * (1 + 1e-9)


def test_a_delta_that_covers_everything_leaves_no_epsilon() -> None:
    """Each of 4,494 releases is within rate * (2 Phi(1/(2 noise)) - 1) of what it would be without one client."""
    assert account([Release(24.0, 2.6e-8, 4494)], 4.9e-6) == Spent(0.0, "gaussian")
