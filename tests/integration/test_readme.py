"""The README's example of the Python API, run as it stands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from he_client import HushSumClient
from tests.integration.processes import Processes, Round

MARK = "<!-- test: api -->"


def marked(readme: str, name: str, language: str = "python") -> str:
    """The one block in this language that follows the mark of this name, and nothing between them."""
    mark = f"<!-- test: {name} -->"
    blocks = re.findall(re.escape(mark) + rf"\s*```{language}\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    assert len(blocks) == readme.count(mark) == 1
    return str(blocks[0])


@pytest.mark.parametrize(
    "text",
    ["", "```python\n1\n```\n", f"{MARK}\nwords\n```python\n1\n```\n", f"{MARK}\n```python\n1\n```\n{MARK}\n"],
    ids=["nothing", "no mark", "words between", "two marks"],
)
def test_an_example_that_cannot_be_found_fails(text: str) -> None:
    with pytest.raises(AssertionError):
        marked(text, "api")


def test_exactly_the_marked_block_is_taken() -> None:
    text = f"```python\nother\n```\n{MARK}\n\n```python\na\nb\n```\n```python\nmore\n```\n"
    assert marked(text, "api") == "a\nb\n"


@pytest.mark.long  # tests/client and test_rounds.py take the same steps
async def test_the_example_runs(
    repository: Path, processes: Processes, clients: list[HushSumClient], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three other clients send zeros to the same round; the fourth is the README."""
    trained: list[set[str]] = []

    def train(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        trained.append(set(tensors))
        return {name: np.full(value.shape, 0.5, dtype=np.float32) for name, value in tensors.items()}

    names = {"__name__": "readme", "url": processes.url, "identity_dir": str(processes.folder(4)), "train": train}
    code = compile(marked((repository / "README.md").read_text(), "api"), "README.md", "exec")
    before = (await clients[0].pull_model(processes.task)).version
    others = Round(processes, clients[:3], seed=20)
    _, _ = await asyncio.gather(others.submit(), asyncio.to_thread(exec, code, names))
    after = await clients[0].pull_model(processes.task)
    status = await clients[0].round(processes.task, others.sent[0].round)
    assert trained == [{"w", "b"}]
    assert (status.state, status.updates, status.version) == ("published", 4, before + 1)
    assert str(after.version) in capsys.readouterr().out
