"""What training takes of memory, and what fits in a budget."""

from __future__ import annotations

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from typer.testing import CliRunner

from examples.har.model import network
from he_client.cli import app
from he_client.training import (
    Trainer,
    Way,
    clipped_gradient_sum,
    measure,
    measure_work,
    parse_size,
    plans,
    propose,
)
from he_protocol.problems import BAD_MODULE, BAD_SETTINGS, BAD_TENSORS
from he_testing.problems import expect_problem
from tests.architecture.source import ROOT

RECORDS = 16
INPUTS, TARGETS = torch.randn(RECORDS, 6, 128), torch.randint(0, 6, (RECORDS,))


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_size_is_a_number_with_a_unit() -> None:
    sizes = {"131072": 131072, "128 KiB": 131072, "128kib": 131072, "1.5 MB": 1500000, " 2 GiB ": 2**31, "7 B": 7}
    assert {text: parse_size(text) for text in sizes} == sizes


@pytest.mark.parametrize(
    "text", ["", "KiB", "0", "0.1 B", "-1", "1e9", "٣", "nan", "inf", "1 PB", "1,5 MB", "9" * 99, "1 [red]"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with expect_problem(BAD_SETTINGS, "budget"):
        parse_size(text)


@pytest.mark.parametrize("numbers", [1000, 250_000])
def test_the_peak_is_what_torch_holds_at_most(numbers: int) -> None:
    """Two tensors at a time, of three; what stays at the end counts as well."""

    def work() -> torch.Tensor:
        first = torch.ones(numbers)
        second = first + 1
        del first
        return second + 1

    found = measure_work(work)
    assert found.peak_bytes == pytest.approx(8 * numbers, abs=256)
    assert 0 < found.seconds < 1


def test_without_torchs_profiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.profiler.kineto_available", lambda: False)
    with expect_problem(BAD_SETTINGS, "profiler"):
        measure_work(lambda: None)


def test_on_devices_whose_memory_is_not_seen_it_is_refused() -> None:
    with expect_problem(BAD_SETTINGS, "expected cpu or cuda, got meta"):
        measure(nn.Linear(2, 2, device="meta"), cross_entropy, torch.randn(3, 2), torch.zeros(3))


@pytest.mark.parametrize(("method", "microbatch"), [("fast", 4), ("vmap", 0), ("streamed", -1)])
def test_a_way_is_a_method_and_a_number(method: Any, microbatch: int) -> None:
    with expect_problem(BAD_SETTINGS, "method" if method == "fast" else "microbatch"):
        Way(method, microbatch)


def test_the_demos_network_one_record_at_a_time_is_a_fortieth() -> None:
    """The float64 sum is 107 kB of it, the network 54 kB; single gradients of 64 records take 12,524 kB."""
    few = measure(network(), cross_entropy, INPUTS, TARGETS, way=Way("streamed", 1)).peak_bytes
    many = measure(network(), cross_entropy, INPUTS, TARGETS, way=Way("vmap", RECORDS)).peak_bytes
    assert few < 280_000 < 2_500_000 < many


def test_a_frozen_beginning_costs_no_graph() -> None:
    """What is in front of all that trains saves nothing for the backward pass, in any way."""

    def peak(depth: int, way: Way) -> int:
        front = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.Tanh())]
        module = nn.Sequential(*front).requires_grad_(False)
        whole, inputs = nn.Sequential(module, nn.Linear(64, 2)), torch.randn(2, 300, 64)
        found = measure(whole, lambda output, _: output.sum(), inputs, torch.zeros(2), way=way).peak_bytes
        return found - sum(value.nbytes for value in whole.parameters())

    for way in (Way("streamed", 1), Way("ghost", 2), Way("vmap", 2)):
        assert peak(8, way) == pytest.approx(peak(2, way), abs=2048), way


def test_plans_are_last_layers_and_each_is_measured() -> None:
    module = network()
    dict(module.named_parameters())["0.bias"].requires_grad_(False)
    found = list(plans(module, cross_entropy, INPUTS, TARGETS, parse_size("230 kB")))
    assert [plan.tensors[0] for plan in found] == ["0.weight", "1.weight", "3.weight", "4.weight", "8.weight"]
    assert {plan.tensors[-1] for plan in found} == {"8.bias"}
    assert [plan.parameters for plan in found] == [13382, 12422, 12358, 2054, 1926]
    assert all(before.work > after.work > 0 for before, after in pairwise(found))
    assert [plan.peak_bytes <= 230_000 for plan in found][-2:] == [True, True]
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    assert frozen == ["0.bias"], "as it was"


def test_of_many_layers_some_are_plans() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    found = list(plans(module, cross_entropy, torch.randn(2, 2), torch.tensor([0, 1])))
    assert len(found) == 9
    assert (found[0].tensors[0], found[-1].tensors) == ("0.weight", ("29.weight", "29.bias"))


def test_the_plan_that_trains_most_in_the_budget_is_proposed() -> None:
    module = network()
    inputs, targets = torch.randn(4, 6, 128), torch.randint(0, 6, (4,))
    for budget, first in ((10**9, "0.weight"), ("300 kB", "0.weight"), ("128 KiB", "4.weight")):
        plan = propose(module, cross_entropy, inputs, targets, budget)
        assert plan.tensors[0] == first
        assert plan.peak_bytes <= (budget if isinstance(budget, int) else parse_size(budget))
    small = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 6))
    with expect_problem(BAD_SETTINGS, "for the plan of 2.weight, 2.bias"):
        propose(small, cross_entropy, torch.randn(4, 3), targets, "100 B")
    with expect_problem(BAD_TENSORS, "at least one record"):
        propose(module, cross_entropy, inputs[:0], targets[:0], "1 MB")


@pytest.mark.parametrize("budget", [None, "280 kB", 3_000_000])
def test_a_trainer_gives_the_same_sum_within_its_budget(budget: int | str | None) -> None:
    module = network()
    expected = clipped_gradient_sum(module, cross_entropy, INPUTS, TARGETS, 0.5)
    trainer = Trainer(module, cross_entropy, 0.5, budget)
    nothing = trainer.gradient_sum(INPUTS[:0], TARGETS[:0])
    assert not any(value.any() for value in nothing.values())
    got = trainer.gradient_sum(INPUTS, TARGETS)
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    if budget is not None:
        assert trainer.way is not None
        assert trainer.budget is not None
        peak = measure(module, cross_entropy, INPUTS, TARGETS, way=trainer.way).peak_bytes
        assert peak <= trainer.budget
        assert (trainer.way.method == "streamed") == (budget == "280 kB")


def test_a_trainer_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(nn.Linear(3, 2), cross_entropy, 1.0, "1 MB")
    trainer.gradient_sum(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr("he_client.training.trainer.choose", None)
    trainer.gradient_sum(torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))


def test_a_trainer_refuses_what_does_not_fit_and_what_is_no_number() -> None:
    with expect_problem(BAD_SETTINGS, "at least"):
        Trainer(network(), cross_entropy, 1.0, "1 KiB").gradient_sum(INPUTS, TARGETS)
    with expect_problem(BAD_SETTINGS, "clip_norm"):
        Trainer(network(), cross_entropy, 0.0)
    with expect_problem(BAD_SETTINGS, "budget"):
        Trainer(network(), cross_entropy, 1.0, "much")


def test_a_record_that_raises_stops_no_trainer(caplog: pytest.LogCaptureFixture) -> None:
    """While it measures either: the server would see that nothing comes. It is said once."""
    targets = TARGETS.clone()
    targets[3] = 99
    rest = [at for at in range(RECORDS) if at != 3]
    expected = clipped_gradient_sum(network(), cross_entropy, INPUTS[rest], TARGETS[rest], 1.0)
    got = Trainer(network(), cross_entropy, 1.0, "3 MB").gradient_sum(INPUTS, targets)
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert sum("1 records count as zero" in line for line in caplog.messages) == 1
    with pytest.raises(IndexError):
        Trainer(network(), cross_entropy, 1.0, "3 MB", raise_errors=True).gradient_sum(INPUTS, targets)


def test_the_how_tos_lines_train_in_the_budget_that_they_name() -> None:
    text = (ROOT / "docs" / "how-to.md").read_text()
    (lines,) = re.findall(r"^<!-- test: budget -->\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"module": network(), "loss": cross_entropy, "clip_norm": 1.0}
    names |= {"inputs": INPUTS[:2], "targets": TARGETS[:2]}
    exec(lines, names)
    assert names["total"].keys() == {"4.weight", "4.bias", "8.weight", "8.bias"}
    assert names["plan"].peak_bytes <= 131072


def test_without_torch_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("he_client.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = asked(tmp_path, "good")
    assert result.exit_code == 2
    assert "pip install 'hushsum[torch]'" in result.stderr


EXAMPLE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

def good():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return module, cross_entropy, torch.randn(6, 4), torch.randint(0, 3, (6,))

def mixed():
    return nn.BatchNorm1d(4), cross_entropy, torch.randn(6, 4), torch.randint(0, 3, (6,))

def misfit():
    return nn.Linear(5, 3), cross_entropy, torch.randn(6, 4), torch.randint(0, 3, (6,))

def three():
    return nn.Linear(4, 3), cross_entropy, torch.randn(6, 4)

def fails():
    raise ValueError("no data\\nhere")

number = 3
"""


def asked(tmp_path: Path, *words: str) -> Any:
    (tmp_path / "mine.py").write_text(EXAMPLE)
    function, *more = words
    return CliRunner().invoke(app, ["plan", f"{tmp_path / 'mine.py'}:{function}", *more])


def test_the_command_shows_plans_and_which_is_proposed(tmp_path: Path) -> None:
    result = asked(tmp_path, "good", "--budget", "100 kB", "--format", "json")
    rows = json.loads(result.stdout)
    assert [row["tensors"] for row in rows] == ["0.weight to 2.bias", "2.weight to 2.bias"]
    assert [row["proposed"] for row in rows] == [True, False]
    assert rows[0]["peak_bytes"] <= 100_000
    assert rows[0].keys() == {
        "tensors", "parameters", "method", "microbatch", "peak_bytes", "seconds", "work", "proposed",
    }  # fmt: skip
    assert "proposed" in asked(tmp_path, "good").stdout


@pytest.mark.parametrize(
    ("words", "why", "kind"),
    [
        (["good", "--budget", "10 B"], "at least", BAD_SETTINGS),
        (["good", "--budget", "big"], "budget", BAD_SETTINGS),
        (["mixed"], "BatchNorm1d", BAD_MODULE),
        (["misfit"], "RuntimeError", BAD_MODULE),
        (["three"], "returns module, loss, inputs, targets", BAD_SETTINGS),
        (["fails"], "ValueError: no data", BAD_SETTINGS),
        (["number"], "cannot be called", BAD_SETTINGS),
        (["nothing"], "cannot import", BAD_SETTINGS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_planned_is_refused_in_a_line(tmp_path: Path, words: list[str], why: str, kind: Any) -> None:
    result = asked(tmp_path, *words)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert why in line
    assert line.endswith(f"[{kind.slug}]")
