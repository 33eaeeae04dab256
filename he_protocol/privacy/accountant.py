"""What noisy sums cost: epsilon at a delta, and the method that says so. Numbers only; it knows no task.

Releases without subsampling are one Gaussian mechanism, in closed form (Balle and Wang, ICML 2018, theorem 8).
Subsampled ones are composed as privacy loss distributions by Google's dp-accounting (Doroshenko et al., PETS 2022),
imported only then, on a grid that is chosen beforehand: every call is bounded in time and memory. Where no such
grid is fine enough the answer is the smaller of two looser bounds: Renyi DP of the sampled Gaussian (Mironov, Talwar
and Zhang 2019), and the same releases without the sampling. Every answer is an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, erf, erfc, exp, expm1, floor, inf, isfinite, log, log1p, pi, sqrt
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from he_protocol.errors import ProblemError
from he_protocol.problems import MISSING_PACKAGE

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf

Method = Literal["none", "gaussian", "pld", "rdp"]
Reals = npt.NDArray[np.float64]

SINGLE_POINTS, COMPOSED_POINTS = 40_000, 200_000
"""Grid points of one release's distribution and of what is composed of it: together about half a second."""
COARSEST, FEWEST = 0.01, 16
"""A wider step, or fewer of them for one release, are not worth it; other bounds are as good there."""
FINEST = 1e-13
"""And a finer one, by the number of releases, drowns in rounding: probabilities are subtracted, and divided by it."""
SMALLEST_DELTA = 1e-10
"""Convolutions by FFT err by about 1e-16 in every entry, more with many releases: below, tails are not known."""
LARGEST_COUNT = 1e11
"""Releases, over delta."""
DISTINCT = 4
"""Distributions that are composed with each other; more kinds of releases than that are left to the other bounds."""
LOG_MASS = 40.0
CHERNOFF_MASS = 1e-15
"""What dp-accounting cuts off, of one release (its logarithm, negative) and of the composition."""
ORDERS = (*range(2, 129), *(int(128 * 1.1**i) for i in range(1, 30)))
"""Of Renyi divergences; integers, for which the sampled Gaussian has a finite sum. The largest is about 2,000."""


@dataclass(frozen=True)
class Release:
    """`count` sums, each with Gaussian noise of `noise` times the sensitivity; `rate` is the Poisson sampling's."""

    noise: float
    rate: float
    count: int


@dataclass(frozen=True)
class Spent:
    """Epsilon, and which of the accountant's methods gave it.

    "gaussian": exact, but where there was sampling, whose amplification it then leaves out. "pld": tight.
    "rdp": looser, by a few percent up to a factor. "none": nothing was spent, or nothing was promised.
    """

    epsilon: float
    method: Method


def account(releases: Iterable[Release], delta: float) -> Spent:
    """Epsilon at `delta` of all releases together, chosen one after another (adaptively) or not.

    >>> spent = account([Release(1.0, 1.0, 1)], 1e-5)
    >>> round(spent.epsilon, 4), spent.method
    (4.3772, 'gaussian')
    """
    merged: dict[tuple[float, float], int] = {}
    for release in releases:
        if release.count > 0:
            rate = release.rate if 0 < release.rate < 1 else 1.0
            merged[release.noise, rate] = merged.get((release.noise, rate), 0) + release.count
    if not merged:
        return Spent(0.0, "none")
    if not (0 < delta < 1 and all(0 < noise < inf for noise, _ in merged)):
        return Spent(inf, "none")
    return _account(tuple(Release(noise, rate, count) for (noise, rate), count in sorted(merged.items())), delta)


@lru_cache(maxsize=1024)
def _account(releases: tuple[Release, ...], delta: float) -> Spent:
    if _total_variation(releases) <= delta:
        return Spent(0.0, "gaussian")
    bounds = [Spent(_gaussian(releases, delta), "gaussian")]
    if bounds[0].epsilon > 0 and any(release.rate < 1 for release in releases):
        bounds.append(Spent(_renyi(releases, delta), "rdp"))
        bounds.append(Spent(_distribution(releases, delta), "pld"))
    return min(bounds, key=lambda bound: bound.epsilon)


# Closed form


def _gaussian(releases: tuple[Release, ...], delta: float) -> float:
    """Sampling left out: Gaussians of means 1/noise compose to one (Dong, Roth and Su 2022, corollary 2)."""
    try:
        mean = sqrt(sum(release.count / release.noise / release.noise for release in releases))
    except OverflowError:  # more releases than a float can count
        return inf
    return gaussian_epsilon(mean, delta) if isfinite(mean * mean) else inf


def _total_variation(releases: tuple[Release, ...]) -> float:
    """Between all releases with and without one client or record, at most: distances add up.

    That of one is rate * (2 Phi(1/(2 noise)) - 1). Where delta is as large, epsilon is zero.
    """
    return sum(release.count * release.rate * erf(1 / (2 * sqrt(2) * release.noise)) for release in releases)


def gaussian_epsilon(mean: float, delta: float) -> float:
    """The least epsilon >= 0 at which N(0, 1) and N(mean, 1) are (epsilon, delta)-indistinguishable, rounded up.

    By bisection over epsilon / mean, in the log domain: exact to about 1e-9 for any mean, and delta down to 1e-300.
    """
    low, high = 0.0, mean / 2 + 40.0  # a normal variable passes 40 with probability below 1e-349
    if mean == 0 or _log_delta(-mean / 2, mean) <= log(delta):
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _log_delta(middle - mean / 2, mean) > log(delta) else (low, middle)
    return mean * high


def _log_delta(t: float, mean: float) -> float:
    """log of Phi(-t) - e^epsilon Phi(-t - mean), where t = epsilon / mean - mean / 2 (Balle and Wang, theorem 8).

    e^epsilon phi(t + mean) = phi(t), so it is phi(t) * (M(t) - M(t + mean)) with Mills' ratio M. Where that would
    cancel, the trapezoid rule stands in: -M' is convex, so it errs upwards, by a part of mean^2.
    """
    if mean < 1e-4:
        return -t * t / 2 + log(mean * (_slope(t) + _slope(t + mean)) / 2 / sqrt(2 * pi))
    if t < 0:
        return log(erfc(t / sqrt(2)) / 2 - exp(-t * t / 2) / sqrt(2 * pi) * _mills(t + mean))
    return -t * t / 2 + log((_mills(t) - _mills(t + mean)) / sqrt(2 * pi))


def _mills(x: float) -> float:
    """(1 - Phi(x)) / phi(x)."""
    return exp(x * x / 2) * erfc(x / sqrt(2)) * sqrt(pi / 2) if x < 5 else 1 / (x + _tail(x))


def _slope(x: float) -> float:
    """-M'(x) = 1 - x M(x) > 0."""
    return 1 - x * _mills(x) if x < 5 else _tail(x) / (x + _tail(x))


def _tail(x: float) -> float:
    """1/(x + 2/(x + 3/(x + ...))), of Laplace's continued fraction for Mills' ratio."""
    tail = 0.0
    for k in range(100, 0, -1):
        tail = k / (x + tail)
    return tail


# Renyi DP


def _renyi(releases: tuple[Release, ...], delta: float) -> float:
    """By the best order; to (epsilon, delta) as Balle et al. 2020, theorem 21."""
    best = inf
    for order in ORDERS:
        spent = sum(release.count * _divergence(release.noise, release.rate, order) for release in releases)
        best = min(best, spent + log1p(-1 / order) - (log(delta) + log(order)) / (order - 1))
    return max(best, 0.0)


@lru_cache(maxsize=1 << 14)
def _divergence(noise: float, rate: float, order: int) -> float:
    """Renyi divergence of one release; adding and removing (Mironov, Talwar and Zhang 2019, section 3.3).

    exp((order - 1) * it) - 1 is a sum of binomial weights times expm1(k(k-1) / (2 noise^2)): nothing cancels.
    """
    if rate == 1:
        return order / (2 * noise * noise) if noise > 1e-150 else inf
    k = np.arange(2, order + 1)
    with np.errstate(over="ignore", divide="ignore"):
        growth = k * (k - 1.0) / 2 / noise / noise
        weights = _log_factorials()[order] - _log_factorials()[k] - _log_factorials()[order - k]
        terms = weights + k * log(rate) + (order - k) * log1p(-rate) + growth + np.log(-np.expm1(-growth))
        return float(np.logaddexp(0.0, np.logaddexp.reduce(terms))) / (order - 1)


@lru_cache(maxsize=1)
def _log_factorials() -> Reals:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, max(ORDERS) + 1)))])


# Privacy loss distributions


def _distribution(releases: tuple[Release, ...], delta: float) -> float:
    """Infinite where no grid of the allowed size would be fine enough."""
    total = sum(release.count for release in releases)
    if len(releases) > DISTINCT or delta < SMALLEST_DELTA or total > LARGEST_COUNT * delta:
        return inf
    ranges = [_range(release) for release in releases]
    if not max(ranges) <= COARSEST * SINGLE_POINTS:
        return inf
    widths = (_composed_range(release, span) for release, span in zip(releases, ranges, strict=True))
    step = max(sum(ranges) / SINGLE_POINTS, sum(widths) / COMPOSED_POINTS, total * FINEST)
    if not step <= min(COARSEST, min(ranges) / FEWEST):
        return inf
    return max(float(_composed(releases, step, adding).get_epsilon_for_delta(delta)) for adding in (False, True))


def _composed(releases: tuple[Release, ...], step: float, adding: bool) -> PLDPmf:
    first, *others = (
        _one_release(release.noise, release.rate, step, adding).self_compose(release.count) for release in releases
    )
    for other in others:
        first = first.compose(other)
    return first


def _one_release(noise: float, rate: float, step: float, adding: bool) -> PLDPmf:
    """One direction of one release on the grid of this step; dense, since sparse ones compose in unbounded time."""
    pld_pmf = _library()
    reach = sqrt(2 * LOG_MASS)
    edges = (_sampled(sign * reach / noise + sign / 2 / noise**2, rate) for sign in (-1, 1))
    low, high = sorted(-edge if adding else edge for edge in edges)
    first, last = floor(low / step), ceil(high / step)
    epsilons: Reals = np.arange(first, last + 1, dtype=np.float64) * step
    deltas = np.clip(_deltas(epsilons, noise, rate, adding), 0.0, 1.0)
    distribution: PLDPmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        step, first, last, np.minimum.accumulate(deltas)
    ).to_dense_pmf()
    return distribution


def _library() -> ModuleType:
    """dp-accounting's distributions. Raises `missing-package`: under a looser bound in its place parties disagree."""
    try:
        from dp_accounting.pld import pld_pmf
    except ImportError:
        how = "pip install 'hushsum[accounting]'"
        raise ProblemError(MISSING_PACKAGE, "dp-accounting says what sampled records cost", expected=how) from None
    return pld_pmf  # type: ignore[no-any-return]


def _deltas(epsilons: Reals, noise: float, rate: float, adding: bool) -> Reals:
    """Hockey-stick divergences of one sampled Gaussian, for each epsilon (also negative ones).

    Removing: of (1-q) N(0) + q N(1) from N(0); adding: the other way round. The loss passes epsilon from (or up to)
    one point x on, where the mixture's density is e^epsilon (e^-epsilon) times that of N(0).
    """
    from scipy.special import log_ndtr, ndtr  # which dp-accounting needs

    losses = -epsilons if adding else epsilons
    reached = np.ones_like(losses, dtype=bool) if rate == 1 else losses > log1p(-rate)
    safe = np.where(reached, losses, 0.0)
    with np.errstate(divide="ignore"):
        ratio = np.where(safe > 30, safe - log(rate), np.log1p(np.expm1(np.minimum(safe, 30)) / rate))
    zero, one = (0.5 + noise * noise * ratio) / noise, (noise * noise * ratio - 0.5) / noise
    if adding:
        mixture = (
            np.logaddexp(np.log1p(-rate) + log_ndtr(zero), log(rate) + log_ndtr(one)) if rate < 1 else (log_ndtr(one))
        )
        return np.where(reached, ndtr(zero) - np.exp(np.minimum(epsilons + mixture, 0)), 0.0)
    mixed = (1 - rate) * ndtr(-zero) + rate * ndtr(-one)
    return np.where(
        reached, mixed - np.exp(np.minimum(epsilons + log_ndtr(-zero), 0)), -np.expm1(np.minimum(epsilons, 0))
    )


def _range(release: Release) -> float:
    """Between the smallest and the largest loss of one release that dp-accounting keeps."""
    reach = sqrt(2 * LOG_MASS)  # its quantile is a little smaller
    high, low = ((reach / release.noise + sign / 2 / release.noise / release.noise) for sign in (1, -1))
    return _sampled(high, release.rate) + abs(_sampled(-high, release.rate)) if isfinite(high - low) else inf


def _sampled(loss: float, rate: float) -> float:
    """log(1 - rate + rate * e^loss): the loss under subsampling."""
    return loss + log(rate + (1 - rate) * exp(-loss)) if loss > 0 else log1p(rate * expm1(loss))


def _composed_range(release: Release, span: float) -> float:
    """Between dp-accounting's Chernoff bounds for the sum of the losses; the orders are its own."""
    noise, rate = release.noise, release.rate
    edge = sqrt(2 * LOG_MASS) * noise
    x = np.linspace(-edge, 1 + edge, 4001)
    shifted = (x - 0.5) / noise**2
    loss = np.logaddexp(log1p(-rate), log(rate) + shifted) if rate < 1 else shifted
    zero, one = np.exp(-(x**2) / 2 / noise**2), np.exp(-((x - 1) ** 2) / 2 / noise**2)
    removed = (1 - rate) * zero + rate * one
    worst = 0.0
    for losses, weights in ((loss, removed / removed.sum()), (-loss, zero / zero.sum())):
        high, low = inf, -inf
        for order in (*range(-20, 0), *range(1, 21)):
            scaled = order / span
            moment = np.log(np.sum(weights * np.exp(scaled * losses)))
            bound = (release.count * moment + log(2 / CHERNOFF_MASS)) / scaled
            high, low = (min(high, bound), low) if order > 0 else (high, max(low, bound))
        worst = max(worst, high - low)
    return float(min(worst, release.count * span))
