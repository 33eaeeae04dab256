"""`he-client` against a live server: what a person types, what comes back, and the exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_file
from typer.testing import CliRunner, Result

from he_authority.enrollment import issue_credential
from he_client.cli import app
from he_party.enrolling import AUTHORITY_FILE, CREDENTIAL_FILE, KEY_FILE, REQUEST_FILE
from he_party.identity import Identity
from he_protocol.identity.jws import SigningKey, jwk_x, read_unverified
from he_protocol.messages import EnrollRequest
from he_protocol.problems import PROBLEMS
from he_testing.deployment import VALID_DAYS
from tests.support.service import MODEL, TASK, Service

TRAINING = """
import numpy as np
from he_client import LocalResult

def update(model):
    return {name: np.full(value.shape, 0.25, dtype=np.float32) for name, value in model.items()}

def weighted(model):
    return update(model), 5

def wrong(model):
    return {"other": np.zeros(3, dtype=np.float32)}

def whole_numbers(model):
    return {name: value.astype(int) for name, value in model.items()}

def told(model, context):
    step = context.plan.clip_norm / 8
    metrics = {"round": context.round, "named": float(context.client == "client-01")}
    return LocalResult({name: value + step for name, value in model.items()}, metrics=metrics, weights=True)

number = 3
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HUSHSUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, of a name that no other test imports."""
    name = f"training_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    return name


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


async def ask(service: Service, *arguments: str | Path, client: int = 1) -> Result:
    """A command of one client, while the server goes on in this thread's loop."""
    where = ("--server", service.url, "--data-dir", service.folder(client), "--task", TASK)
    return await asyncio.to_thread(run, *arguments, *where)


def refused(result: Result, slug: str) -> None:
    assert result.exit_code == 2, result.output
    assert slug in PROBLEMS
    assert f"[{slug}]" in result.stderr
    assert "Traceback" not in result.output


def test_init_makes_a_key_and_a_request_and_never_twice(tmp_path: Path) -> None:
    folder = tmp_path / "device"
    made = run("init", "--name", "device-1", "--data-dir", folder)
    assert made.exit_code == 0, made.output
    printed = run("enroll-request", "--data-dir", folder)
    request = printed.stdout.strip()
    assert request == (folder / REQUEST_FILE).read_text().strip()
    assert read_unverified(request, EnrollRequest).name == "device-1"
    authority = SigningKey.generate()
    (folder / CREDENTIAL_FILE).write_text(issue_credential(authority, request, "client", now=0, days=1))
    (folder / AUTHORITY_FILE).write_text(jwk_x(authority.public))
    assert Identity.load(folder).name == "device-1"
    before = (folder / KEY_FILE).read_bytes()
    refused(run("init", "--name", "device-1", "--data-dir", folder), "bad-key-file")
    assert (folder / KEY_FILE).read_bytes() == before


def test_init_refuses_a_name_that_nobody_can_enrol(tmp_path: Path) -> None:
    refused(run("init", "--name", "...", "--data-dir", tmp_path / "x"), "bad-settings")
    assert not (tmp_path / "x").exists()


def test_a_request_that_was_never_made_is_refused(tmp_path: Path) -> None:
    refused(run("enroll-request", "--data-dir", tmp_path), "bad-settings")


def test_every_command_teaches() -> None:
    for command in ("init", "enroll-request", "status", "model", "submit", "train", "updates", "wait"):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert "Usage" in shown.output


def test_a_task_must_be_named(tmp_path: Path) -> None:
    refused(run("status", "--data-dir", tmp_path), "bad-settings")


async def test_the_newest_model_is_saved(service: Service, tmp_path: Path) -> None:
    out = tmp_path / "newest.safetensors"
    saved = await ask(service, "model", "--out", out, "--format", "json")
    assert saved.exit_code == 0, saved.output
    assert [(row["model_version"], row["file"]) for row in json.loads(saved.stdout)] == [(0, str(out))]
    np.testing.assert_equal(load_file(out), MODEL)
    refused(await ask(service, "model", "--out", tmp_path / "none" / "x"), "bad-settings")


async def test_status_for_people_and_for_scripts(service: Service) -> None:
    shown = await ask(service, "status", "--format", "json")
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.stdout)
    config = service.task.config
    assert (row["task"], row["scheme"]) == (TASK, f"{config.encryption.scheme}/{config.encryption.profile}")
    assert (row["parameters"], row["model_version"], row["epsilon_spent"]) == (8, 0, 0.0)
    assert row["epsilon_planned"] > 0
    until = datetime.fromisoformat(row["credential_until"]).timestamp() - time.time()
    assert VALID_DAYS - 1 < until / 86400 <= VALID_DAYS
    table = await ask(service, "status")
    assert table.exit_code == 0
    assert TASK in table.stdout
    assert "epsilon planned" in table.stdout


async def test_status_of_an_unknown_task_names_the_known(service: Service) -> None:
    result = await asyncio.to_thread(
        run, "status", "--server", service.url, "--data-dir", service.folder(1), "--task", "other"
    )
    refused(result, "not-found")
    assert TASK in result.stderr


async def test_train_takes_part_in_rounds(service: Service, training: str) -> None:
    """Two rounds, while another client sends zeros."""
    async with service.committee():
        partner = asyncio.create_task(_partner(service, 2))
        result = await ask(service, "train", f"{training}:update", "--rounds", "2", "--format", "json")
        await partner
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["round"], row["model_version"]) for row in rows] == [(1, 1), (2, 2)]
    assert 0 < rows[0]["epsilon_spent"] < rows[1]["epsilon_spent"]
    assert rows[0]["update_id"] != rows[1]["update_id"]
    assert rows[0]["bytes"] == rows[1]["bytes"] > 0
    assert "client-level epsilon" in result.stderr
    assert "metrics" not in rows[0]


async def test_a_function_may_ask_for_its_context_and_return_metrics(service: Service, training: str) -> None:
    """Of what it clips by, it needs no second copy."""
    async with service.committee():
        partner = asyncio.create_task(_partner(service, 1))
        result = await ask(service, "train", f"{training}:told", "--format", "json")
        await partner
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["norm"] == row["clipped_norm"] == pytest.approx(8**0.5 * service.task.config.privacy.clip_norm / 8, 1e-3)
    assert row["metrics"] == {"round": 1.0, "named": 1.0}


async def _partner(service: Service, rounds: int) -> None:
    zeros = np.zeros(service.task.length, dtype=np.int64)
    async with service.client(2) as client:
        for base in range(rounds):
            sealed = await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=base)
            await client.wait(service.task, await client.upload(service.task, sealed))


async def test_train_first_sends_what_was_left_behind(service: Service, training: str) -> None:
    zeros = np.zeros(service.task.length, dtype=np.int64)
    async with service.client(1) as client:
        sealed = await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
    async with service.committee():
        partner = asyncio.create_task(_partner(service, 2))
        result = await ask(service, "train", f"{training}:update", "--format", "json")
        await partner
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["round"], row["model_version"]) == (2, 2)
    assert (sealed.folder / "receipt").exists()


@pytest.mark.parametrize(
    ("function", "slug"),
    [
        ("no_such_module:update", "bad-settings"),
        ("{training}:nothing", "bad-settings"),
        ("{training}", "bad-settings"),
        (":update", "bad-settings"),
        ("{training}:number", "bad-settings"),
        ("{training}:wrong", "bad-tensors"),
        ("{training}:whole_numbers", "bad-tensors"),
        ("{training}:weighted", "bad-plan"),
    ],
)
async def test_train_refuses_what_it_cannot_use(service: Service, training: str, function: str, slug: str) -> None:
    refused(await ask(service, "train", function.format(training=training)), slug)


async def test_submit_sends_one_file(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "update.safetensors"
    save_file({"w": np.ones((2, 3), dtype=np.float32), "b": np.ones(2, dtype=np.float32)}, file)
    result = await ask(service, "submit", file, "--base-version", "0", "--format", "json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["round"] == 1
    async with service.client(1) as client:
        assert (await client.round(service.task, 1)).updates == 1
    refused(await ask(service, "submit", file, "--base-version", "0", "--wait", "0"), "already-in-round")


async def test_submit_waits_for_the_round_after_the_one_that_a_leftover_is_in(service: Service, tmp_path: Path) -> None:
    """What an earlier run left behind is sent first and takes this client's place in the open round."""
    file = tmp_path / "update.safetensors"
    save_file({"w": np.ones((2, 3), dtype=np.float32), "b": np.ones(2, dtype=np.float32)}, file)
    zeros = np.zeros(service.task.length, dtype=np.int64)
    async with service.client(1) as client:
        for _ in range(2):
            await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
        (sent,) = await client.resume(service.task)  # the other has to wait, and is no failure
        assert await client.resume(service.task) == []
    submitting = asyncio.create_task(ask(service, "submit", file, "--base-version", "0", "--format", "json"))
    async with service.client(2) as other:
        sealed = await other.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
        async with asyncio.timeout(20):  # twice for the leftover alone; then for it and for the new one
            while service.server.metrics.updates.labels("already-in-round")._value.get() < 4:
                await asyncio.sleep(0.01)
        await other.upload(service.task, sealed)  # fills the round
    result = await submitting
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["round"] == sent.round + 1


async def test_updates_are_listed_waited_for_sent_and_dropped(service: Service) -> None:
    zeros = np.zeros(service.task.length, dtype=np.int64)
    async with service.committee(), service.client(1) as client, service.client(2) as other:
        for _ in range(3):
            await client.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
        listed = json.loads((await ask(service, "updates", "--retry", "--format", "json")).stdout)
        assert sorted((row["state"], row["problem"]) for row in listed) == [
            ("acknowledged", ""),
            ("waiting", "already-in-round"),
            ("waiting", "already-in-round"),
        ]
        assert "wait for the next one" in listed[-1]["why"]
        waiting = [row["update_id"] for row in listed if row["state"] == "waiting"]
        left = await ask(service, "updates", "--drop", waiting[0], "--drop", waiting[1], "--format", "json")
        (acknowledged,) = json.loads(left.stdout)
        refused(await ask(service, "updates", "--drop", waiting[0]), "not-found")
        sealed = await other.encrypt(service.task, lambda start, stop: zeros[start:stop], base_version=0)
        await other.upload(service.task, sealed)  # fills the round
        waited = await ask(service, "wait", acknowledged["update_id"], "--format", "json")
        assert json.loads(waited.stdout)[0]["model_version"] == 1
    for unknown in ("0" * 32, "../rounds/1", "%2e%2e", "not an id", "\u2603"):
        refused(await ask(service, "wait", unknown), "not-found")


async def test_submit_reads_small_floats_and_says_what_the_limits_took(service: Service, tmp_path: Path) -> None:
    """A norm of 24 under a clip of 2: before, nobody heard of it."""
    file = tmp_path / "update.safetensors"
    update = {"w": torch.full((2, 3), 9.0, dtype=torch.bfloat16), "b": torch.full((2,), 7.0).to(torch.float8_e4m3fn)}
    torch_file(update, file)
    result = await ask(service, "submit", file, "--base-version", "0", "--format", "json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert (row["saturated"], row["norm"], row["clipped_norm"]) == (0.0, 24.17, 2.0)
    whole = dict.fromkeys(("w", "b"), torch.zeros(2, 3))
    for name, wrong in (("w", torch.zeros(2, 3, dtype=torch.int32)), ("b", torch.zeros(2).to(torch.float8_e8m0fnu))):
        torch_file(whole | {name: wrong}, file)
        result = await ask(service, "submit", file, "--base-version", "0")
        refused(result, "bad-tensors")
        assert f"tensor '{name}'" in result.stderr


@pytest.mark.parametrize("content", [None, b"not safetensors"])
async def test_submit_refuses_a_file_that_is_none(service: Service, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "update.safetensors"
    if content is not None:
        file.write_bytes(content)
    refused(await ask(service, "submit", file, "--base-version", "0"), "bad-tensors")


async def test_a_config_file_serves_as_well(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File under environment under flags, through the command line."""
    config = tmp_path / "client.toml"
    config.write_text(f'server = "{service.url}"\ntask = "of-the-file"\ndata_dir = "{service.folder(1)}"\n')
    refused(await asyncio.to_thread(run, "status", "--config", config), "not-found")
    monkeypatch.setenv("HUSHSUM_CLIENT_TASK", TASK)
    assert (await asyncio.to_thread(run, "status", "--config", config)).exit_code == 0
    refused(await asyncio.to_thread(run, "status", "--config", config, "--task", "of-the-flag"), "not-found")


async def test_an_identity_that_is_not_there_is_refused(service: Service, tmp_path: Path) -> None:
    result = await asyncio.to_thread(run, "status", "--server", service.url, "--data-dir", tmp_path, "--task", TASK)
    refused(result, "bad-key-file")
