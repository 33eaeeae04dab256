"""From an empty folder to a published round with one's own model: the commands that the README shows, as processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from he_client.lab import URL_FILE
from tests.integration.test_readme import marked

SECONDS = 400
"""The longest that any of it may take beside other tests."""
PROMISED_SECONDS = 120
"""For all commands, after installation, where nothing else runs."""
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("HUSHSUM_")}

LOGISTIC = '''
"""Logistic regression with the arrays that scikit-learn's LogisticRegression keeps: coef_ and intercept_."""
import numpy as np

def model():
    return {"coef_": np.zeros((1, 3)), "intercept_": np.zeros(1)}

def fit(model, client=0):
    x = np.random.default_rng(client).normal(size=(10 * (client + 1), 3))
    y = (x @ [1.0, -2.0, 0.5] > 0.3).astype(float)
    coef, intercept = model["coef_"].astype(float), model["intercept_"].astype(float)
    for _ in range(50):
        error = 1 / (1 + np.exp(-(x @ coef[0] + intercept))) - y
        coef, intercept = coef - error @ x / len(x), intercept - error.mean()
    return {"coef_": coef - model["coef_"], "intercept_": intercept - model["intercept_"]}, len(x)
'''


def run(folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it."""
    path = Path(sys.executable).with_name(program)
    done = subprocess.run([path, *words], cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=SECONDS)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def up(folder: Path) -> Iterator[None]:
    """`he-server lab up mylab` in another terminal, from when it is ready until Ctrl-C."""
    command = [str(Path(sys.executable).with_name("he-server")), "lab", "up", "mylab"]
    log = folder / "up.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=CLEAN, stdout=file, stderr=file)
    deadline = time.monotonic() + SECONDS
    try:
        while not (folder / "mylab" / URL_FILE).exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    said = log.read_text()
    assert "never for real data" in said.splitlines()[0]
    assert "ready: he-client train FILE.py:FUNCTION --lab mylab --all" in said
    assert {"server", "holder-1"} <= {line.split()[0] for line in said.splitlines() if line}
    assert "Traceback" not in said


def train(folder: Path, *more: str) -> list[dict[str, object]]:
    done = run(folder, "he-client", "train", "my.py:fit", "--lab", "mylab", "--all", "--format", "json", *more)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("my", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_a_first_round_with_the_readmes_model(tmp_path: Path, repository: Path) -> None:
    """After `pip install`, three commands."""
    (tmp_path / "my.py").write_text(marked((repository / "README.md").read_text(), "lab"))
    started = time.monotonic()
    made = run(
        tmp_path, "he-server", "lab", "init", "mylab", "--clients", "6", "--holders", "4", "--model", "my.py:model"
    )
    assert made.returncode == 0, made.stderr
    with up(tmp_path):
        rows = train(tmp_path)
        took = time.monotonic() - started
    if os.getloadavg()[0] < 2 * (os.cpu_count() or 1):
        assert took < PROMISED_SECONDS
    assert [row["client"] for row in sorted(rows, key=lambda row: str(row["client"]))] == [
        f"client-{number:02}" for number in range(1, 7)
    ]
    assert {row["model_version"] for row in rows} == {1}
    before, after = (load_file(tmp_path / "mylab" / f"{name}.safetensors") for name in ("initial", "model"))
    module = loaded(tmp_path / "my.py")
    updates = [module.fit(dict(before), client=number) for number in range(6)]
    for name, value in before.items():
        mean = np.mean([update[name] for update in updates], axis=0)
        assert np.abs(mean).max() > 1e-3
        np.testing.assert_allclose(after[name], value + mean, atol=1e-5)


@pytest.mark.long
def test_arrays_of_scikit_learns_kind_weighted_by_examples(tmp_path: Path) -> None:
    """A second start goes on where the first has ended. scikit-learn itself is not needed."""
    (tmp_path / "my.py").write_text(LOGISTIC)
    about = ("--clients", "3", "--holders", "3", "--model", "my.py:model", "--weight-cap", "20")
    assert run(tmp_path, "he-server", "lab", "init", "mylab", *about).returncode == 0
    with up(tmp_path):
        rows = train(tmp_path, "--rounds", "2")
    assert sorted((row["client"], row["model_version"]) for row in rows) == [
        (f"client-{number:02}", version) for number in (1, 2, 3) for version in (1, 2)
    ]
    with up(tmp_path):
        assert {row["model_version"] for row in train(tmp_path)} == {3}
    after = load_file(tmp_path / "mylab" / "model.safetensors")
    module = loaded(tmp_path / "my.py")
    expected = {name: value.astype(np.float32) for name, value in module.model().items()}
    for _ in range(3):
        fitted = [module.fit(expected, client=number) for number in range(3)]
        weights = [min(examples, 20) for _, examples in fitted]
        for name in expected:
            mean = np.average([update[name] for update, _ in fitted], axis=0, weights=weights)
            expected[name] = (expected[name] + mean).astype(np.float32)
    assert np.abs(expected["coef_"]).max() > 0.1
    for name, value in expected.items():
        np.testing.assert_allclose(after[name], value, atol=1e-3)
