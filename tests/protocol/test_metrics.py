"""Metrics: what a report is, how far two can lie apart, and what a sum of them says."""

from __future__ import annotations

from math import hypot, inf, nan, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_protocol.aggregation.metrics import MAX_METRICS, Metric, Reports
from he_protocol.privacy.plan import PrivacyPlan, noise_std, sensitivity
from he_protocol.problems import BAD_PLAN, BAD_TENSORS
from he_protocol.schemes.registry import load_scheme
from he_protocol.sum_bounds import SumPlan
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.parties import World

LOSS, AGES = Metric("loss", 0.0, 5.0), Metric("ages", 0.0, 100.0, bins=4)
NONE = PrivacyPlan("none")
RECORD = PrivacyPlan("record", 1.0, 1.0, 0.01, 1e-5, 8.0)
SCALE = 2.0**16
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def reports(*metrics: Metric, share: float = 0.1, clip_norm: float = 1.0, value_range: float = 4.0) -> Reports:
    return Reports(metrics or (LOSS, AGES), share, clip_norm, value_range)


def sums(privacy: PrivacyPlan = NONE, clients: int = 100) -> SumPlan:
    return SumPlan(load_scheme("kahe", "kahe-30"), privacy, 100, 3, clients, 4.0, 100)


def total(made: Reports, *said: dict[str, Any]) -> np.ndarray:
    rows = [made.encode(values) for values in said]
    return np.rint(np.sum(rows, axis=0, dtype=np.float64) * SCALE).astype(np.int64)


def test_a_task_without_metrics_sends_nothing_more() -> None:
    none = Reports((), 0.1, 1.0, 4.0)
    assert (none.appended, none.norm, none.encode({"loss": 1.0}).size) == (0, 0.0, 0)
    assert none.decode(sums(), SCALE, np.zeros(0, dtype=np.int64), 9) == ()


def test_a_sum_says_the_mean_and_the_histogram() -> None:
    made = reports()
    opened = total(made, {"loss": 1.0, "ages": [10, 30, 30, 99]}, {"loss": 2.0, "ages": 60.0})
    loss, ages = made.decode(sums(), SCALE, opened, 2)
    assert (loss.name, ages.name) == ("loss", "ages")
    assert loss.reports == pytest.approx(2, 1e-3)
    assert loss.values == pytest.approx((1.5,), abs=0.01)
    assert ages.values == pytest.approx((0.125, 0.25, 0.5, 0.125), abs=0.01)


def test_who_does_not_report_moves_no_mean() -> None:
    made = reports()
    said = {"loss": 1.0, "ages": 60.0}
    loss, _ = made.decode(sums(), SCALE, total(made, said, said), 40)
    assert (loss.reports, loss.values) == (pytest.approx(2, 1e-3), (pytest.approx(1.0, abs=0.01),))


def test_values_beyond_the_ends_are_cut_to_them() -> None:
    made = reports()
    far, end = {"loss": 1e300, "ages": [-5, 500]}, {"loss": 5.0, "ages": [0, 100]}
    assert (made.encode(far) == made.encode(end)).all()


@pytest.mark.parametrize(
    "values",
    [{"loss": 1.0}, {}, {"loss": nan, "ages": 1}, {"loss": 1.0, "ages": []}, {"loss": 1.0, "ages": [inf]},
     {"loss": [1.0, 2.0], "ages": 1}, {"loss": "high", "ages": 1}, {"loss": None, "ages": 1}, {"loss": 1j, "ages": 1},
     {"loss": 10**400, "ages": 1}],
    ids=str,
)  # fmt: skip
def test_a_report_that_cannot_be_used_is_refused(values: dict[str, Any]) -> None:
    with expect_problem(BAD_TENSORS, "metric"):
        reports().encode(values)


@given(NUMBERS, NUMBERS, st.lists(NUMBERS, min_size=1), st.lists(NUMBERS, min_size=1), st.floats(1e-3, 1.0))
def test_no_two_reports_lie_further_apart_than_is_accounted_for(
    a: float, b: float, some: list[float], others: list[float], share: float
) -> None:
    """A record more or less changes any number to any other; a client that is away is a report of zeros."""
    made = reports(share=share)
    one, other = made.encode({"loss": a, "ages": some}), made.encode({"loss": b, "ages": others})
    slight = 1 + 1e-6
    assert np.linalg.norm(one.astype(np.float64) - other) <= made.norm * slight
    assert np.linalg.norm(one.astype(np.float64)) <= made.norm * slight
    assert made.norm <= share * 1.0 * slight
    assert np.abs(one).max() <= made.value_range


def test_the_bound_is_met() -> None:
    """So a smaller one would be wrong: two records apart are as far as the noise is made for."""
    made = reports()
    low, high = made.encode({"loss": 0.0, "ages": 1}), made.encode({"loss": 5.0, "ages": 99})
    assert np.linalg.norm(high - low) == pytest.approx(made.reach * sqrt(3), 1e-6)
    assert made.norm == pytest.approx(made.reach * 2, 1e-6)  # with the number of reports, if it moves, too


def test_noise_is_made_for_the_metrics_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off: the metrics go out under noise that was made for the model alone."""
    base = World(plan={"privacy": {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5,
                                   "epsilon_budget": 100.0}}).task.config  # fmt: skip
    config = changed(base, metrics=(LOSS, AGES), metrics_share=0.75)
    wanted = sensitivity(
        config.privacy, scale=config.encryption.scale, length=config.length, weight_range=config.reports.norm
    )

    def carried() -> float:
        return config.sum_plan.noise_std(config.encryption.scale) * sqrt(config.rounds.min_clients)

    config.check()
    assert config.length == base.length + 1 + 1 + 4
    assert carried() >= wanted >= hypot(1.0, 0.75) * config.encryption.scale
    monkeypatch.setattr(Reports, "norm", 0.0)
    assert carried() < wanted


def test_noise_is_told_of() -> None:
    made = reports(LOSS)
    noisy = sums(RECORD)
    (loss,) = made.decode(noisy, SCALE, total(made, *[{"loss": 1.0}] * 100_000), 100_000)
    alone = noise_std(RECORD, scale=SCALE, length=100, min_clients=3)
    assert loss.reports_std == pytest.approx(sqrt(100_000) * alone / SCALE / made.reach, 1e-3)
    u = 1.0 / 5 - 0.5
    assert loss.std == pytest.approx(5 * loss.reports_std * hypot(1, u) / loss.reports, 1e-3)
    assert loss.values == (pytest.approx(1.0, abs=0.01),)


def test_too_few_reports_say_nothing() -> None:
    made = reports(LOSS)
    (loss,) = made.decode(sums(RECORD), SCALE, total(made, {"loss": 1.0}), 100)
    assert (loss.values, loss.std) == ((), 0.0)


def test_noise_does_not_carry_a_mean_beyond_its_ends() -> None:
    made = reports()
    opened = np.array([1 << 20, 1 << 40, -(1 << 40), 1 << 40, 0, 0])
    loss, ages = made.decode(sums(), SCALE, opened, 5)
    assert (loss.values, ages.values) == ((5.0,), (0.0, 1.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ((Metric("a", 1.0, 1.0),), "low < high"),
        ((Metric("a", 0.0, inf),), "finite"),
        ((Metric("a", -1.7e308, 1.7e308),), "low < high"),
        ((Metric("a", bins=1),), "at least 2 bins"),
        ((LOSS, LOSS), "must differ"),
        ((Metric("saturated", 0.0, 2.0),), "is a share"),
        ((Metric("saturated", bins=3),), "is a share"),
        (tuple(Metric(f"m{i}") for i in range(MAX_METRICS + 1)), "at most"),
    ],
)
def test_metrics_that_cannot_be_meant_are_refused(metrics: tuple[Metric, ...], why: str) -> None:
    with expect_problem(BAD_PLAN, why):
        reports(*metrics).check()


@pytest.mark.parametrize("share", [0.0, -1.0, inf, 1e-320])
def test_a_share_that_cannot_be_meant_is_refused(share: float) -> None:
    with expect_problem(BAD_PLAN):
        changed(World().task.config, metrics=(LOSS,), metrics_share=share).check()
