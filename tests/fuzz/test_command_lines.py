"""Whatever is typed at the five programs: an answer, or a refusal of one line and exit code 2; never a traceback."""

from __future__ import annotations

import os
import re
import shutil
import threading
import traceback
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from typer.main import get_command
from typer.testing import CliRunner, Result

from he_bench.results import Failed
from he_party.http_transport import RetryPolicy
from he_party.kernels import Warmed
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

from .command_lines import PROGRAMS, Typed, lay_out, typed, write_drawn

REFUSED = re.compile(r"^refused .* \[[a-z-]+\]$")


def _busy(*_: object, **__: object) -> None:
    raise OSError(98, "Address in use")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("typed") / "files"
    lay_out(root)
    return root


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served, measured or asked again."""

    def compare(*_: object, **__: object) -> None:
        raise ProblemError(BAD_SETTINGS, "not done here")

    async def measure(*_: object) -> None:
        raise ProblemError(BAD_SETTINGS, "not measured here")

    monkeypatch.setattr("typer.testing._get_command", cache(get_command))
    monkeypatch.setattr("os.execv", compare)  # `he-server lab` would take the place of the tests
    monkeypatch.setattr("he_server.http.listening.Listener.start", _busy)
    monkeypatch.setattr("he_server.cli.doctor.warm", lambda *_: Warmed(0, 0, 0.0))
    monkeypatch.setattr("he_bench.runner.run_point", lambda point, _: Failed(point, "not measured here"))
    monkeypatch.setattr("he_bench.compare.compare", compare)
    monkeypatch.setattr("he_bench.load.measure_load", measure)
    monkeypatch.setattr("he_party.http_transport.RetryPolicy", partial(RetryPolicy, give_up=0.0))


def run(root: Path, line: Typed) -> Result:
    """In a copy of the files, which the command may change."""
    here, folder = Path.cwd(), root.with_name("copy")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root, folder, symlinks=True)
    write_drawn(folder, line)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HUSHSUM_")}
    try:
        os.chdir(folder)
        with mock.patch.dict(os.environ, clean | line.environment, clear=True):
            return CliRunner().invoke(import_module(PROGRAMS[line.program]).app, line.words)
    finally:
        os.chdir(here)
        structlog.reset_defaults()


def left_open() -> list[str]:
    """Threads of connections that nobody closed: when the loop is gone, they end in a traceback of their own."""
    threads = [thread for thread in threading.enumerate() if "connection_worker" in thread.name]
    for thread in threads:
        thread.join(1.0)
    return [thread.name for thread in threads if thread.is_alive()]


def check(result: Result) -> None:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        shown = "".join(traceback.format_exception(result.exception))
        raise AssertionError(f"a traceback:\n{shown}") from result.exception
    assert result.exit_code in {0, 1, 2}
    assert "Traceback" not in result.output
    assert left_open() == []
    lines = result.stderr.splitlines()
    if result.exit_code == 2 and not any("Usage" in each for each in lines):
        assert REFUSED.match(lines[-1]), lines


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(line=typed())
def test_whatever_is_typed_ends_with_an_answer_or_a_refusal(files: Path, line: Typed) -> None:
    check(run(files, line))


@pytest.mark.long
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(line=typed())
def test_so_does_what_is_typed_for_longer(files: Path, line: Typed) -> None:
    check(run(files, line))


def test_what_is_drawn_goes_deep(files: Path) -> None:
    """So that the tests above can fail: without a mistake in it a line does its work."""
    sign = ["task", "sign", "plan.toml", "--model", "initial.safetensors", "--server", "data/credential.jws"]
    for program, words in [
        ("he-authority", [*sign, "--holder", "holder/credential.jws", "--out", "new"]),
        ("he-server", ["revoke", "revoked.jws"]),
        ("he-server", ["task", "add", "task.jws", "--model", "initial.safetensors"]),
        ("he-holder", ["rotate"]),
        ("he-client", ["enroll-request"]),
    ]:
        result = run(files, Typed(program, words))
        assert result.exit_code == 0, result.output
