from __future__ import annotations

from he_bench.cases import DESCRIPTIONS, load_case
from he_bench.profiles import default_profile, profiles
from he_bench.suites import SUITES, points


def largest(case: str, profile: str) -> int:
    return max(point.parameters for point in points(SUITES["full"], [case], [profile], 2))


def test_every_case_can_be_loaded() -> None:
    for case in DESCRIPTIONS:
        assert callable(load_case(case))


def test_light_profiles_go_further() -> None:
    assert largest("encrypt", "kahe-30") == 10**8
    assert largest("ingest", "kahe-30") == 10**8
    assert largest("round", "kahe-30") == 10**7
    assert largest("encrypt", "ckks-8192") == 10**6


def test_sizes_can_be_replaced() -> None:
    found = points(SUITES["quick"], ["fold"], ["ckks-8192"], 2, parameters=[7, 10**7], clients=[3])
    assert [(point.parameters, point.clients, point.cores) for point in found] == [(7, 3, 1), (10**7, 3, 1)]


def test_sealing_is_measured_on_one_core_and_on_two() -> None:
    def cores(available: int) -> list[int]:
        return [p.cores for p in points(SUITES["quick"], ["encrypt"], ["kahe-30"], available, parameters=[10])]

    assert cores(1) == [1]
    assert cores(8) == [1, 2]


def test_the_default_profile_exists() -> None:
    assert default_profile() in profiles()
