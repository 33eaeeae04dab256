"""The targets of coverage-guided fuzzing: their corpus on every platform, and a few seconds of search where it runs.

HUSHSUM_FUZZ_SECONDS sets the seconds for each target.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import targets
from .__main__ import fuzz, main
from .mutation import mutated

SECONDS = int(os.environ.get("HUSHSUM_FUZZ_SECONDS", "5"))


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("name", targets.NAMES)
def test_corpus(name: str) -> None:
    """Everything that was once worth keeping, among it every input that has shown a bug."""
    for data in targets.corpus(name):
        targets.load(name).run(data)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
@pytest.mark.parametrize("name", targets.NAMES)
def test_damage(name: str) -> None:
    target = targets.load(name)

    @given(st.one_of(st.binary(max_size=200), mutated(list(target.SEEDS))))
    def run(data: bytes) -> None:
        target.run(data)

    run()


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is missing on this platform")
@pytest.mark.parametrize("name", targets.NAMES)
def test_search(name: str, tmp_path: Path) -> None:
    outcome = fuzz(name, SECONDS, tmp_path)
    assert not outcome.findings
    assert outcome.executions > len(targets.load(name).SEEDS)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is missing on this platform")
def test_a_bug_is_found_and_its_input_saved(tmp_path: Path) -> None:
    [found] = fuzz("broken", 20, tmp_path).findings
    assert found.read_bytes().startswith(b"g!")
    assert found.name.startswith("broken-crash-")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is missing on this platform")
def test_a_target_that_does_not_run_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError):
        fuzz("nonesuch", 1, tmp_path)


def test_without_atheris_nothing_is_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.fuzz.__main__.find_spec", lambda name: None)
    assert main(["--seconds", "1"]) == 2
    assert "atheris is missing" in capsys.readouterr().err
