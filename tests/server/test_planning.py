"""`he-server plan`: what buckets cost."""

from __future__ import annotations

import json
import time
from types import NoneType

import pytest
from typer.testing import CliRunner

from he_protocol.errors import ProblemError
from he_server.cli.main import app


def offers(*options: str) -> dict[str, dict[str, object]]:
    sizes = ["--parameters", "1000000", "--clients", "1000", "--committee", "2/4/3"]
    result = CliRunner().invoke(app, ["plan", *sizes, "--format", "json", *options])
    assert result.exception is None, result.output
    return {offer["profile"]: offer for offer in json.loads(result.stdout)["profiles"]}


def test_more_buckets_are_more_noise_of_every_client() -> None:
    """Each of four buckets must carry the promised noise with a quarter of the clients."""
    whole, split = offers()["kahe-30"], offers("--buckets", "4")["kahe-30"]
    assert split["mean_noise"] == pytest.approx(2 * float(str(whole["mean_noise"])), rel=0.01)


def test_every_bucket_uses_flooding_noise() -> None:
    assert offers("--rounds", "100")["ckks-8192"]["refusal"] == ""
    assert "flooding" in str(offers("--rounds", "100", "--buckets", "100")["ckks-8192"]["refusal"])


FAR = ["0", "-1", "1", "100", str(2**31), str(2**53), str(2**53 + 1), str(2**70), str(10**400), "inf", "nan"]


@pytest.mark.parametrize("value", FAR)
@pytest.mark.parametrize("option", ["--parameters", "--clients", "--rounds", "--min-clients", "--buckets"])
def test_sizes_far_out_of_range_are_answered_at_once(option: str, value: str) -> None:
    sizes = {"--parameters": "1000", "--clients": "1000", "--rounds": "100"} | {option: value}
    begun = time.process_time()
    for unit in (["--unit", "client"], ["--unit", "record", "--value-range", "1", "--sampling-rate", "0.1"]):
        result = CliRunner().invoke(app, ["plan", *unit, *(word for pair in sizes.items() for word in pair)])
        assert (result.exit_code in {0, 2}, isinstance(result.exception, (SystemExit, NoneType))) == (True, True)
    assert time.process_time() - begun < 2 * 2.0


@pytest.mark.parametrize("value", ["0", "-1", "1e-320", "1e-9", "1e9", "1e308", "inf", "nan"])
@pytest.mark.parametrize(
    "option", ["--clip-norm", "--noise", "--sampling-rate", "--delta", "--value-range", "--accuracy"]
)
def test_so_are_other_numbers(option: str, value: str) -> None:
    for unit in (["--unit", "client"], ["--unit", "record", "--value-range", "1"], ["--unit", "none"]):
        line = ["plan", "--parameters", "1000", "--clients", "100", "--rounds", str(10**6), *unit, option, value]
        begun, result = time.process_time(), CliRunner().invoke(app, line)
        assert (result.exit_code in {0, 2}, isinstance(result.exception, (SystemExit, NoneType))) == (True, True)
        assert time.process_time() - begun < 2.0


def test_buckets_that_cannot_be_filled() -> None:
    sizes = ["--parameters", "10", "--clients", "100", "--min-clients", "30", "--buckets", "4"]
    result = CliRunner().invoke(app, ["plan", *sizes])
    assert isinstance(result.exception, ProblemError) or "bad-plan" in result.output
