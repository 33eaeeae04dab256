"""A lab as an object, as notebooks have it: the event loop runs already."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client.context import LocalResult
from he_protocol.errors import ProblemError
from he_testing import Lab
from tests.integration.test_readme import marked

MODEL = {"w": np.zeros((3, 2), np.float32)}


def fit(model: dict[str, np.ndarray], client: int = 0) -> LocalResult:
    update = {name: np.full(value.shape, client + 1.0, np.float32) for name, value in model.items()}
    return LocalResult(update, metrics={"client": client})


@pytest.mark.long
async def test_the_cell_of_the_readme(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = marked((repository / "README.md").read_text(), "notebook")
    names: dict[str, Any] = {"model": MODEL, "fit": fit}
    code = compile(cell, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, names)
    np.testing.assert_allclose(names["lab"].model["w"], np.full((3, 2), 10.5), atol=1e-4)
    assert "'w'" in capsys.readouterr().out


@pytest.mark.long  # tests/integration/test_lab.py trains in a lab, too
async def test_a_lab_trains_and_leaves_nothing_behind() -> None:
    lab = await Lab(MODEL, clients=3)
    try:
        outcomes = await lab.train(fit, rounds=2)
        assert sorted(outcome.version or 0 for outcome in outcomes) == [1, 1, 1, 2, 2, 2]
        assert {outcome.metrics["client"] for outcome in outcomes} == {0, 1, 2}
        np.testing.assert_allclose(lab.model["w"], np.full((3, 2), 4.0), atol=1e-4)  # twice the mean of 1, 2 and 3

        def broken(model: dict[str, np.ndarray]) -> LocalResult:
            raise KeyError("label")

        with pytest.raises(KeyError, match="label"):
            await lab.train(broken)
        await lab.train(fit)
        np.testing.assert_allclose(lab.model["w"], np.full((3, 2), 6.0), atol=1e-4)
    finally:
        await lab.stop()
    assert not lab.folder.exists()
    assert lab.processes == []


def test_a_model_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ProblemError, match="a torch module"):
        Lab("model")
