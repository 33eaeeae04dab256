"""Settings and the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy.exc import ProgrammingError
from typer.testing import CliRunner

from he_party.keyfile import KeyRecord, read_private
from he_protocol import problems
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import SigningKey, jwk_x, verify
from he_protocol.messages import EnrollRequest
from he_server.cli.main import app
from he_server.settings import load_settings
from he_testing.clocks import FakeClock
from he_testing.plans import changed
from tests.support.kahe import INSECURE_TASK

from .world import START, World, initial_model

run = CliRunner().invoke


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """What `he-server init` leaves."""
    result = run(app, ["init", "--data-dir", str(tmp_path), "--name", "aggregator"])
    assert result.exit_code == 0, result.output
    return tmp_path


@pytest.fixture
def authority(data_dir: Path) -> SigningKey:
    key = SigningKey.generate()
    (data_dir / "authority.pub").write_text(jwk_x(key.public) + "\n")
    return key


def test_file_then_environment_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.toml"
    file.write_text('port = 1\nhost = "file"\nlease_seconds = 7\n')
    monkeypatch.setenv("HUSHSUM_SERVER_PORT", "2")
    monkeypatch.setenv("HUSHSUM_SERVER_HOST", "environment")
    found = load_settings(file, port=3, host=None)
    assert (found.port, found.host, found.lease_seconds) == (3, "environment", 7.0)


@pytest.mark.parametrize("text", ["port = 'x'", "unknown = 1", "port = ", "port = 70000", "tls_cert = 'a'"])
def test_settings_that_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ProblemError) as caught:
        load_settings(file)
    assert caught.value.problem == problems.BAD_SETTINGS


def test_a_passphrase_protects_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", "open sesame, open sesame")
    run(app, ["init", "--data-dir", str(tmp_path), "--name", "aggregator", "--no-warm"])
    assert not (tmp_path / "server.key").read_bytes().startswith(b"{")
    settings = load_settings(data_dir=tmp_path)
    assert settings.read_key().name == "aggregator"
    assert "sesame" not in repr(settings)
    monkeypatch.setenv("HUSHSUM_SERVER_PASSPHRASE", "open sesame, open sesame")
    with pytest.raises(ProblemError, match="the passphrase has one variable"):
        settings.read_key()


def test_init_makes_a_key_and_a_request(data_dir: Path) -> None:
    record = read_private(data_dir / "server.key", KeyRecord)
    request = verify((data_dir / "enroll-request.jws").read_text().strip(), EnrollRequest, record.public)
    assert (request.name, request.role, request.key) == ("aggregator", "server", record.public)


@pytest.mark.parametrize(
    ("arguments", "slug"),
    [
        (["init", "--data-dir", "{dir}", "--name", "aggregator"], "bad-key-file"),
        (["init", "--data-dir", "{dir}/b", "--name", "..."], "bad-settings"),
        (["serve", "--data-dir", "{dir}"], "bad-settings"),
        (["serve", "--data-dir", "{dir}", "--port", "70000"], "bad-settings"),
        (["serve", "--data-dir", "{dir}", "--config", "{dir}/none.toml"], "bad-settings"),
        (["serve", "--data-dir", "{dir}", "--database-url", "nonsense"], "bad-settings"),
        (["migrate", "--data-dir", "/proc/none"], "bad-settings"),
        (
            ["migrate", "--data-dir", "{dir}", "--database-url", "sqlite+aiosqlite:////none/a.db"],
            "database-unavailable",
        ),
        (["status", "--data-dir", "{dir}/none"], "bad-settings"),
        (["status", "--database-url", "nonsense"], "bad-settings"),
        (["status", "--data-dir", "{dir}"], "database-unavailable"),
    ],
)
def test_errors_are_one_line(data_dir: Path, arguments: list[str], slug: str) -> None:
    result = run(app, [argument.format(dir=data_dir) for argument in arguments])
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(f"[{slug}]")


def test_a_failure_of_the_database_while_migrating_is_no_wrong_setting(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raced(*_: object) -> None:
        raise ProgrammingError("CREATE TABLE tasks", None, Exception("relation exists"))

    monkeypatch.setattr("he_server.services.migration.upgrade", raced)
    result = run(app, ["migrate", "--data-dir", str(data_dir)])
    assert (result.exit_code, "[database-unavailable]" in result.stderr) == (2, True)


def test_tasks_offline(data_dir: Path, authority: SigningKey) -> None:
    world = World(authority, read_private(data_dir / "server.key", KeyRecord), FakeClock(START))
    config = world.config()
    (data_dir / "task.jws").write_text(authority.sign(config))
    (data_dir / "initial.safetensors").write_bytes(initial_model(config))
    add = ["task", "add", str(data_dir / "task.jws"), "--model", str(data_dir / "initial.safetensors")]
    added = run(app, [*add, "--data-dir", str(data_dir)])
    assert added.exit_code == 0, added.output
    listed = json.loads(run(app, ["task", "list", "--data-dir", str(data_dir), "--format", "json"]).stdout)
    assert [(task["task"], task["model_version"]) for task in listed] == [(added.stdout.strip(), 0)]
    status = json.loads(run(app, ["status", "--data-dir", str(data_dir), "--format", "json"]).stdout)
    assert [(r["round"], r["state"]) for r in status[0]["rounds"]] == [(1, "open")]
    assert "demo" in run(app, ["status", "--data-dir", str(data_dir)]).stdout
    stranger = config.__class__(**{**{f: getattr(config, f) for f in config.__struct_fields__}, "epoch": 5})
    (data_dir / "task.jws").write_text(SigningKey.generate().sign(stranger))
    refused = run(app, [*add, "--data-dir", str(data_dir)])
    assert (refused.exit_code, "[bad-signature]" in refused.stderr) == (2, True)


def test_a_profile_for_tests_is_refused_offline(data_dir: Path, authority: SigningKey) -> None:
    config = World(authority, read_private(data_dir / "server.key", KeyRecord), FakeClock(START)).config(
        **INSECURE_TASK
    )
    (data_dir / "task.jws").write_text(authority.sign(config))
    (data_dir / "initial.safetensors").write_bytes(initial_model(config))
    add = ["task", "add", str(data_dir / "task.jws"), "--model", str(data_dir / "initial.safetensors")]
    refused = run(app, [*add, "--data-dir", str(data_dir)])
    assert (refused.exit_code, "'kahe-insecure' is insecure" in refused.stderr) == (2, True)


def test_another_initial_model_is_refused_offline(data_dir: Path, authority: SigningKey) -> None:
    config = World(authority, read_private(data_dir / "server.key", KeyRecord), FakeClock(START)).config()
    (data_dir / "task.jws").write_text(authority.sign(changed(config, initial_model=bytes(32))))
    (data_dir / "initial.safetensors").write_bytes(initial_model(config))
    add = ["task", "add", str(data_dir / "task.jws"), "--model", str(data_dir / "initial.safetensors")]
    refused = run(app, [*add, "--data-dir", str(data_dir)])
    assert (refused.exit_code, "[digest-mismatch]" in refused.stderr) == (2, True)
    assert list((data_dir / "blobs" / "models").rglob("*.safetensors")) == []


def test_a_process_from_start_to_sigterm(data_dir: Path, authority: SigningKey) -> None:
    assert authority
    port_file = data_dir / "port"
    command = [sys.executable, "-m", "he_server", "serve", "--data-dir", str(data_dir), "--port", "0"]
    environment = {**os.environ, "HUSHSUM_SERVER_LOG_LEVEL": "info"}
    with subprocess.Popen(
        [*command, "--port-file", str(port_file)], stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            deadline = time.monotonic() + 30
            while not port_file.exists() and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            port = int(port_file.read_text())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
                assert json.load(response) == {"status": "ready"}
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
            assert process.stderr is not None
            events = [json.loads(line)["event"] for line in process.stderr.read().decode().splitlines()]
            assert events[0] == "ready"
            assert events[-2:] == ["draining", "stopped"]
        finally:
            process.kill()
