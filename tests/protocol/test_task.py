"""The task: what the authority signs is checked once, and everything follows from it."""

from __future__ import annotations

import hashlib
from dataclasses import replace as profile_replace
from typing import Any

import pytest
from msgspec.structs import replace

from he_protocol.config import MAX_LENGTH, MAX_VECTORS, TaskConfig, TensorSpec
from he_protocol.frames import HEAD_LIMIT
from he_protocol.identity.jws import verify
from he_protocol.messages import FailedBucket, Share, ShareVector, to_json
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.problems import (
    BAD_COMMITTEE,
    BAD_PLAN,
    BAD_SIGNATURE,
    FINGERPRINT_MISMATCH,
    MALFORMED,
    PROBLEMS,
    SUM_COULD_WRAP,
    UNKNOWN_FIELD,
    WRONG_SCHEME,
)
from he_protocol.schemes.registry import load_scheme
from he_protocol.task import Task
from he_testing.plans import changed
from he_testing.problems import expect_problem

from .parties import AUTHORITY, MALLORY, hpke_key, task_config
from .test_signing import raw_jws

CONFIG = task_config()
RECORD = PrivacyPlan("record", 1.0, 1.0, 0.01, 1e-5, 2.0)
CLIENT = PrivacyPlan("client", 1.0, 1.0, 1.0, 1e-5, 2.0)


def test_a_signed_task_is_checked_and_named_by_its_hash():
    task = Task.from_token(AUTHORITY.sign(CONFIG), AUTHORITY.public)
    assert task.config == CONFIG
    assert task.hash == hashlib.sha256(to_json(CONFIG)).digest()
    assert task.id == task.hash.hex()
    assert task.epoch_id == task.hash + (1).to_bytes(8, "little")
    assert task.scheme is load_scheme("ckks", "ckks-8192")
    assert (task.sharing.holders, task.sharing.threshold) == (3, 2)
    assert (task.parameters, task.length) == (3100, 3100)
    assert [part.name for part in task.body] == ["c0", "c1"]
    assert (task.section("sum").name, task.section("key").name) == ("c0", "c1")
    assert [task.holder_index(f"holder-{n}") for n in range(3)] == [0, 1, 2]
    assert task.holder_index("stranger") is None
    assert task.noise_std == 0


def test_the_weight_rides_along_as_one_more_coordinate():
    task = Task(changed(CONFIG, weighting="examples", privacy=CLIENT), "", bytes(32))
    assert (task.parameters, task.length) == (3100, 3101)
    heavier = Task(changed(CONFIG, privacy=CLIENT), "", bytes(32))
    assert task.noise_std > heavier.noise_std > 0


def test_only_the_authority_makes_tasks():
    """A server that could sign one would choose its own committee."""
    with expect_problem(BAD_SIGNATURE):
        Task.from_token(MALLORY.sign(CONFIG), AUTHORITY.public)


def test_a_signed_but_inconsistent_task_is_refused():
    with expect_problem(BAD_COMMITTEE):
        Task.from_token(AUTHORITY.sign(changed(CONFIG, threshold=1)), AUTHORITY.public)


FIRST, SECOND, THIRD = CONFIG.committee.holders


@pytest.mark.parametrize(
    ("change", "problem", "why"),
    [
        ({"scheme": "bfv"}, WRONG_SCHEME, "scheme"),
        ({"profile": "ckks-1"}, WRONG_SCHEME, "profile"),
        ({"fingerprint": bytes(32)}, FINGERPRINT_MISMATCH, "ckks-8192"),
        ({"threshold": 1}, BAD_COMMITTEE, "allow_no_collusion"),
        ({"threshold": 4}, BAD_COMMITTEE, "do not fit together"),
        ({"agreement": 1}, BAD_COMMITTEE, "do not fit together"),
        ({"agreement": 4}, BAD_COMMITTEE, "do not fit together"),
        ({"agreement": 2}, BAD_COMMITTEE, "allow_no_collusion"),
        ({"holders": (FIRST, SECOND, replace(THIRD, name=FIRST.name))}, BAD_PLAN, "holder names"),
        ({"holders": (FIRST, SECOND, replace(THIRD, key=FIRST.key))}, BAD_PLAN, "holder keys"),
        ({"tensors": (TensorSpec("w", (2,)), TensorSpec("w", (3,)))}, BAD_PLAN, "tensor names"),
        ({"tensors": (TensorSpec("w", (MAX_LENGTH + 1,)),)}, BAD_PLAN, "too large"),
        ({"tensors": (TensorSpec("w", (MAX_LENGTH,)),), "weighting": "examples"}, BAD_PLAN, "too large"),
        ({"min_clients": 101}, BAD_PLAN, "exceeds rounds.max_clients"),
        ({"buckets": 34}, BAD_PLAN, "exceeds rounds.max_clients"),
        ({"buckets": 513, "min_clients": 1, "max_clients": 1000}, BAD_PLAN, "too many buckets for one share"),
        ({"buckets": 2, "combination": "median"}, BAD_PLAN, "at least 3 buckets"),
        ({"buckets": 2, "combination": "trimmed-mean"}, BAD_PLAN, "at least 3 buckets"),
        ({"privacy": replace(RECORD, delta=0.0)}, BAD_PLAN, "privacy.delta"),
        ({"privacy": replace(RECORD, max_corrupt=3)}, BAD_PLAN, "max_corrupt"),
        ({"privacy": replace(CLIENT, sampling_rate=0.5)}, BAD_PLAN, "amplification"),
        ({"privacy": replace(CLIENT, noise_multiplier=1e-6)}, BAD_PLAN, "too narrow"),
        ({"privacy": replace(CLIENT, noise_multiplier=float("inf"))}, BAD_PLAN, "privacy.noise_multiplier"),
        ({"privacy": replace(CLIENT, clip_norm=float("nan"))}, BAD_PLAN, "privacy.clip_norm"),
        ({"privacy": replace(CLIENT, delta=1e-310)}, BAD_PLAN, "privacy.delta"),
        ({"privacy": replace(CLIENT, epsilon_budget=float("inf"))}, BAD_PLAN, "privacy.epsilon_budget"),
        ({"privacy": replace(RECORD, sampling_rate=5e-324)}, BAD_PLAN, "privacy.sampling_rate"),
        ({"scale": float("nan")}, BAD_PLAN, "encryption.scale"),
        ({"value_range": float("inf")}, BAD_PLAN, "aggregation.value_range"),
        ({"weight_cap": 1e-320}, BAD_PLAN, "aggregation.weight_cap"),
        ({"privacy": RECORD, "weighting": "examples"}, BAD_PLAN, "record-level"),
        ({"scale": 2.0**31}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"value_range": 2.0**11}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"max_clients": 1 << 18}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"scale": 1e308}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"privacy": replace(CLIENT, clip_norm=1e300)}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"privacy": replace(CLIENT, noise_multiplier=1e4)}, SUM_COULD_WRAP, "lower encryption.scale"),
        ({"max_openings": 1 << 30}, BAD_PLAN, "flooding"),
    ],
)
def test_a_plan_that_does_not_fit_together_is_refused(change, problem, why):
    CONFIG.check()
    with expect_problem(problem, why):
        changed(CONFIG, **change).check()


def test_the_largest_share_of_any_task_fits_into_a_frame():
    """As many vectors as a task may have; or none, every bucket named with the longest slug."""
    buckets = range(MAX_VECTORS)
    whole = tuple(ShareVector(bucket, 125, bytes(32)) for bucket in buckets)
    none = tuple(FailedBucket(bucket, bytes(16), max(PROBLEMS, key=len)) for bucket in buckets)
    for parts, failed in ((whole, ()), ((), none)):
        share = Share(bytes(32), 2**53, 2**53, bytes(32), "h" * 64, parts, failed)
        assert len(AUTHORITY.sign(share)) <= HEAD_LIMIT


def test_two_holders_with_one_key_would_break_the_threshold():
    """The attack behind `holder keys must differ`: one person under two names is a quorum of 2-of-3."""
    two_faced = changed(CONFIG, holders=(FIRST, replace(FIRST, name="other", hpke=hpke_key(9).public), THIRD))
    with expect_problem(BAD_PLAN, "holder keys"):
        two_faced.check()


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": ()},
        {"tensors": (TensorSpec("", (1,)),)},
        {"tensors": (TensorSpec("w", (0,)),)},
        {"tensors": (TensorSpec("w", (1,) * 33),)},
        {"holders": ()},
        {"scale": 0.0},
        {"scale": -1.0},
        {"value_range": 0.0},
        {"min_clients": 0},
        {"threshold": 0},
        {"epoch": -1},
        {"weighting": "votes"},
        {"weight_cap": 0.0},
        {"name": "Bad Name"},
        {"fingerprint": bytes(31)},
        {"holders": (replace(FIRST, hpke=bytes(1215)),)},
    ],
)
def test_values_out_of_range_do_not_decode(change):
    with expect_problem(MALFORMED):
        verify(AUTHORITY.sign(changed(CONFIG, **change)), TaskConfig, AUTHORITY.public)


def test_a_task_with_an_unknown_field_is_refused():
    """A later version may have added a promise that this one would not keep."""
    header = {"alg": "Ed25519", "typ": "hushsum-taskconfig+jws;v=2"}
    assert Task.from_token(raw_jws(header, to_json(CONFIG), AUTHORITY), AUTHORITY.public).config == CONFIG
    with expect_problem(UNKNOWN_FIELD, "local_floor"):
        Task.from_token(raw_jws(header, to_json(CONFIG)[:-1] + b',"local_floor":9}', AUTHORITY), AUTHORITY.public)


@pytest.mark.parametrize("privacy", [PrivacyPlan("none"), CLIENT, RECORD, replace(CLIENT, noise_multiplier=8.0)])
@pytest.mark.parametrize("clients", [3, 100, 1000])
@pytest.mark.parametrize("weighting", ["uniform", "examples", "fixed"])
def test_the_derived_scale_is_the_largest_power_of_two(privacy, clients, weighting):
    if privacy.unit == "record" and weighting == "examples":
        return
    config = changed(CONFIG, privacy=privacy, max_clients=clients, weighting=weighting, scale=1.0, max_openings=10)
    scale = config.sum_plan.largest_scale()
    assert scale == 2.0 ** (scale.as_integer_ratio()[0].bit_length() - 1)
    changed(config, scale=scale).check()
    with expect_problem(SUM_COULD_WRAP):
        changed(config, scale=2 * scale).check()


def test_no_scale_is_an_answer_too():
    with expect_problem(SUM_COULD_WRAP, "no scale"):
        changed(CONFIG, value_range=2.0**40).sum_plan.largest_scale()


def test_the_largest_sum_counts_rounding_and_the_noises_tail():
    assert CONFIG.sum_plan.largest(CONFIG.encryption.scale) == 100 * (2**20 + 1)
    noisy = changed(CONFIG, privacy=CLIENT)
    std = Task(noisy, "", b"").noise_std
    tail = noisy.sum_plan.deviations * 10 * std
    assert noisy.sum_plan.largest(noisy.encryption.scale) == pytest.approx(100 * (2**20 + 1) + tail)


@pytest.mark.parametrize("profile", ["kahe-30", "kahe-20", "kahe-18", "kahe-16", "kahe-14"])
@pytest.mark.parametrize("clients", [3, 100])
def test_summed_errors_of_kahe_must_fit_too(profile, clients):
    """Errors of std * sqrt(n): a sum that wraps is another number and no error would tell."""
    config = kahe_config(profile, max_clients=clients)
    tail = config.sum_plan.deviations * config.encryption.load().error_std * clients**0.5
    assert config.sum_plan.largest(1.0) == pytest.approx(clients * 2 + tail)
    scale = config.sum_plan.largest_scale()
    changed(config, scale=scale).check()
    with expect_problem(SUM_COULD_WRAP):
        changed(config, scale=2 * scale).check()


def test_a_kahe_task_has_no_ceremony_and_small_key_parts():
    task = Task(kahe_config("kahe-30"), "", bytes(32))
    assert not task.scheme.ceremony
    assert [part.name for part in task.body] == ["b", "shares"]
    assert (task.section("sum").name, task.section("key").name) == ("b", "shares")
    assert task.section("key").size < 16_000


def kahe_config(profile: str, **changes: Any) -> TaskConfig:
    numbers = load_scheme("kahe", profile).profile.fingerprint
    return changed(CONFIG, scheme="kahe", profile=profile, fingerprint=numbers, scale=1.0, **changes)


def test_a_profile_with_other_numbers_is_noticed():
    profile = load_scheme("ckks", "ckks-8192").profile
    with expect_problem(FINGERPRINT_MISMATCH, "got " + profile.fingerprint.hex()):
        changed(CONFIG, fingerprint=profile_replace(profile, flood_bits=30).fingerprint).check()
