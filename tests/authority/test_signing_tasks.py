"""`task sign` signs only what everybody can use: what others would refuse later is refused before it is written."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_file
from typer.testing import CliRunner, Result

from he_authority.cli import app
from he_authority.tasks import sign_task
from he_client.training import arrays, load_arrays
from he_holder.keyring import new_holder
from he_party.enrolling import create
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.identity.jws import SigningKey, public_from_jwk
from he_protocol.problems import BAD_PLAN, BUDGET_EXHAUSTED, MALFORMED
from he_protocol.task import Task
from he_server.blobs.tensor_file import keep_model
from he_testing.blobs import MemoryBlobs
from he_testing.plans import changed
from he_testing.problems import expect_problem
from tests.support.holders import PLAN_FILE
from tests.support.parties import World

PLAN = PLAN_FILE.format(scheme="kahe", profile="kahe-30")
W = np.zeros((5, 2), np.float32)
NO_DP = PLAN[PLAN.index("[privacy]") : PLAN.index("[rounds]")]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An authority's folder, with the credentials of a server and a holder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    assert run("init").exit_code == 0
    new_holder(Path("holder"), "holder", time.time())
    create(Path("server"), "server", "server", time.time())
    for role in ("holder", "server"):
        enrolled = run("enroll", f"{role}/enroll-request.jws", "--role", role, "--out", f"{role}.jws")
        assert enrolled.exit_code == 0, enrolled.output
    Path("plan.toml").write_text(PLAN)
    return tmp_path


def sign(*more: str) -> Result:
    files = (
        "--model",
        "model.safetensors",
        "--server",
        "server.jws",
        "--holder",
        "holder.jws",
        "--out",
        "task.jws",
        "--force",
    )
    return run("task", "sign", "plan.toml", *files, *more)


def signed() -> Task:
    authority = public_from_jwk(Path("authority/authority.pub").read_text().strip())
    return Task.from_token(Path("task.jws").read_text().strip(), authority)


def refused(result: Result, slug: str, *words: str) -> None:
    """One line, and nothing written."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.endswith(f"[{slug}]")
    assert all(word in line for word in words), line
    assert not Path("task.jws").exists()


@pytest.mark.usefixtures("office")
@pytest.mark.parametrize(
    ("old", "new", "slug", "words"),
    [
        ("noise_multiplier = 4.0", "noise_multiplier = inf", "bad-plan", "privacy.noise_multiplier"),
        ("noise_multiplier = 4.0", "noise_multiplier = nan", "bad-plan", "noise_multiplier"),
        (NO_DP, '[privacy]\nunit = "none"\nclip_norm = inf\n\n', "bad-plan", "privacy.clip_norm"),
        (NO_DP, '[privacy]\nunit = "none"\nepsilon_budget = inf\n\n', "bad-plan", "privacy.epsilon_budget"),
        ("value_range = 4.0", "value_range = inf", "bad-plan", "aggregation.value_range"),
        ("value_range = 4.0", "value_range = 4.0\nweight_cap = inf", "bad-plan", "aggregation.weight_cap"),
        ("value_range = 4.0", "value_range = 4.0\nmetrics = [{name = 'a', high = inf}]", "bad-plan", "metric 'a'"),
        ("value_range = 4.0", "value_range = 4.0\nmetrics = [{name = 'a', low = 2.0}]", "bad-plan", "low < high"),
        ("value_range = 4.0", "value_range = 4.0\nmetrics = [{name = 'A b'}]", "bad-plan", "metrics"),
        (
            "value_range = 4.0",
            "value_range = 4.0\noptimiser = {learning_rate = inf}",
            "bad-plan",
            "aggregation.optimiser.learning_rate (expected a finite number, got inf)",
        ),
        ('profile = "kahe-30"', 'profile = "kahe-30"\nscale = inf', "bad-plan", "encryption.scale"),
        ("min_clients = 3", "min_clients = 1", "bad-plan", "the sum of one update is that update"),
        ("epsilon_budget = 100.0", "epsilon_budget = 1.0", "budget-exhausted", "epsilon at most 1.0, got 3.3414"),
        ("[aggregation]", '[aggregation]\nweighting = "examples"', "bad-plan", "needs aggregation.weight_cap"),
        (
            "[aggregation]",
            '[aggregation]\nweighting = "examples"\nweight_cap = 1.0',
            "bad-plan",
            "two examples would count no more than one",
        ),
        ("[aggregation]", '[aggregation]\nweighting = "fixed"', "bad-plan", "needs aggregation.weight_cap"),
    ],
)
def test_plans_that_nobody_could_use_are_not_signed(old: str, new: str, slug: str, words: str) -> None:
    assert old in PLAN
    Path("plan.toml").write_text(PLAN.replace(old, new))
    save_file({"w": W}, "model.safetensors")
    refused(sign(), slug, words)


def bad(value: float) -> dict[str, Any]:
    return {"w": W, "v": np.array([0.0, value], np.float32)}


@pytest.mark.usefixtures("office")
@pytest.mark.parametrize(
    ("tensors", "slug", "words"),
    [
        (bad(np.nan), "bad-tensors", "tensor 'v' has a value that is not finite"),
        (bad(-np.inf), "bad-tensors", "tensor 'v' has a value that is not finite"),
        ({}, "bad-plan", "no tensors"),
        ({"w": np.zeros((3, 0, 2), np.float32)}, "bad-plan", "the shape of tensor 'w'"),
        ({"w": np.zeros((1,) * 33, np.float32)}, "bad-plan", "at most 32 dimensions"),
        ({"n" * 257: W}, "bad-plan", "got 257 characters"),
        ({"": W}, "bad-plan", "1 to 256 characters"),
        ({f"layers.{n}.weight": W[0] for n in range(60_000)}, "bad-plan", "too many tensors (60000)"),
        ({"w": W.astype(np.float64)}, "bad-tensors", "tensors 'w' (expected float32, got ['float64'])"),
        ({"w": W.astype(np.float16)}, "bad-tensors", "float16"),
        ({"w": W.astype(np.complex64)}, "bad-tensors", "complex64"),
        ({"w": W, "bn.n": np.array(7)}, "bad-tensors", "--exclude '*n' (expected float32, got bn.n (int64))"),
        ({"w": W, "mask": np.array([True])}, "bad-tensors", "--exclude"),
    ],
)
def test_models_that_nobody_could_use_are_not_signed(tensors: Mapping[str, Any], slug: str, words: str) -> None:
    save_file(dict(tensors), "model.safetensors")
    refused(sign(), slug, words)


@pytest.mark.usefixtures("office")
def test_a_type_that_numpy_does_not_have_is_named() -> None:
    torch_file({"w": torch.zeros(5, 2, dtype=torch.bfloat16)}, "model.safetensors")
    refused(sign(), "bad-plan", "tensor 'w' of type BF16 cannot be read here; save it as float32")


class Scaled(torch.nn.Module):
    """With buffers, and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.gain = torch.nn.Parameter(torch.tensor(2.5))


@pytest.mark.usefixtures("office")
def test_a_module_with_buffers_is_signed_and_added_as_it_was_saved() -> None:
    """Counters stay out by a pattern, here and when the server is given the same file; float buffers are averaged."""
    module = Scaled()
    torch_file(module.state_dict(), "model.safetensors")
    refused(sign(), "bad-tensors", "--exclude '*num_batches_tracked'", "norm.num_batches_tracked (int64)")
    refused(sign("--exclude", "*.nothing"), "bad-tensors", "no tensor is called '*.nothing'")
    assert sign("--exclude", "*num_batches_tracked").exit_code == 0
    task = signed()
    assert task.config.model.shapes == {name: value.shape for name, value in arrays(module, buffers=True).items()}
    assert task.config.model.shapes["gain"] == ()
    keep_model(MemoryBlobs(), task, Path("model.safetensors").read_bytes())


@pytest.mark.usefixtures("office")
def test_patterns_may_be_repeated_and_what_is_left_is_the_task() -> None:
    module = Scaled()
    torch_file(module.state_dict(), "model.safetensors")
    assert sign("--exclude", "norm.running_*", "--exclude", "*num_batches_tracked").exit_code == 0
    task = signed()
    assert task.config.model.shapes.keys() == arrays(module).keys()
    load_arrays(module, {name: np.ones(shape, np.float32) for name, shape in task.config.model.shapes.items()})
    assert (module.gain.item(), module.norm.running_mean.tolist()) == (1.0, [0.0, 0.0])  # type: ignore[union-attr]
    assert sign("--exclude", "*").exit_code == 2


@pytest.mark.usefixtures("office")
def test_weights_that_are_said_in_words_are_signed() -> None:
    save_file({"w": W}, "model.safetensors")
    for words in ('weighting = "examples"\nweight_cap = 500', 'weighting = "fixed"\nweight_cap = 1.0'):
        Path("plan.toml").write_text(PLAN.replace("[aggregation]", f"[aggregation]\n{words}"))
        assert sign().exit_code == 0


@pytest.mark.usefixtures("office")
def test_what_a_task_costs_is_said_when_it_is_signed() -> None:
    save_file({"w": W}, "model.safetensors")
    assert "client-level epsilon 3.341 at delta 1e-05 after 10 openings, of a budget of 100" in sign().stdout
    Path("plan.toml").write_text(PLAN.replace(NO_DP, '[privacy]\nunit = "none"\n\n'))
    assert "without differential privacy" in sign().stdout


@pytest.mark.usefixtures("office")
def test_the_next_epoch_is_checked_in_the_same_way() -> None:
    save_file({"w": W}, "model.safetensors")
    assert sign().exit_code == 0
    new_holder(Path("again"), "holder", time.time())
    enrolled = run("enroll", "again/enroll-request.jws", "--role", "holder", "--out", "again.jws", "--new-key")
    assert enrolled.exit_code == 0
    save_file({"w": W * np.float32(np.nan)}, "model.safetensors")
    files = ("--holder", "again.jws", "--model", "model.safetensors", "--out", "next.jws")
    result = run("task", "next", "task.jws", *files)
    assert (result.exit_code, "not finite" in result.stderr, Path("next.jws").exists()) == (2, True, False)


def test_a_token_is_read_as_others_read_it_before_it_is_given_away() -> None:
    """Whatever check is forgotten elsewhere: what does not come back is not signed."""
    world, key = World(), SigningKey.generate()
    config = world.task.config
    assert Task.from_token(sign_task(key, config), key.public).config == config
    with expect_problem(MALFORMED, "$.name"):
        sign_task(key, replace(config, name="Not A Name"))
    with expect_problem(BAD_PLAN, "min_clients"):
        sign_task(key, changed(config, min_clients=1))
    plan = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "epsilon_budget": 1.0}
    with expect_problem(BUDGET_EXHAUSTED):
        sign_task(key, World(plan={"privacy": plan}).task.config)


def test_every_party_refuses_a_model_that_its_messages_cannot_carry() -> None:
    config = World().task.config
    for specs, words in (
        ((TensorSpec("__metadata__", (2,)),), "__metadata__"),
        ((TensorSpec("w", (2, 0)),), "shape"),
        (tuple(TensorSpec(f"{n:0256}", ()) for n in range(4000)), "too many tensors (4000)"),
        ((), "no tensors"),
    ):
        with expect_problem(BAD_PLAN, words):
            replace(config, model=ModelSpec(specs, bytes(32))).check()


def test_a_plan_of_the_server_names_a_round_of_one() -> None:
    from he_server.cli.main import app as server

    sizes = ["--parameters", "1000", "--clients", "100", "--unit", "none", "--value-range", "1", "--format", "json"]
    result = CliRunner().invoke(server, ["plan", *sizes, "--min-clients", "1"])
    assert (result.exit_code, "[bad-plan]" in result.stderr) == (2, True)
    assert json.loads(CliRunner().invoke(server, ["plan", *sizes, "--min-clients", "2"]).stdout)["recommended"]


@pytest.mark.usefixtures("office")
def test_whoever_signs_sees_what_clients_report() -> None:
    save_file({"w": W}, "model.safetensors")
    plan = Path("plan.toml").read_text()
    Path("plan.toml").write_text(
        plan.replace(
            "value_range = 4.0", "value_range = 4.0\nmetrics = [{name = 'loss', high = 5.0}, {name = 'saturated'}]"
        )
    )
    done = sign()
    assert done.exit_code == 0, done.output
    assert "clients report, in the same sums: loss, saturated" in done.output
    assert signed().length == signed().parameters + 3
