"""`he-server plan`: what buckets cost."""

from __future__ import annotations

import json

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


def test_buckets_that_cannot_be_filled() -> None:
    sizes = ["--parameters", "10", "--clients", "100", "--min-clients", "30", "--buckets", "4"]
    result = CliRunner().invoke(app, ["plan", *sizes])
    assert isinstance(result.exception, ProblemError) or "bad-plan" in result.output
