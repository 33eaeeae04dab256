"""docs/how-to.md, typed: every command in order, against real programs, over TLS, on SQLite and PostgreSQL."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from he_protocol.identity.jws import payload_hash
from tests.integration.document import CLIENTS, HOLDERS, Command, Terminal, commands
from tests.integration.test_proxies import free_port
from tests.integration.test_readme import marked
from tests.support.certificates import self_signed
from tests.support.postgres import new_database
from tests.support.tunnel import Tunnel

HOW_TO = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()
SMALLER = {
    "min_clients = 500": "min_clients = 2",
    "max_clients = 1000": "max_clients = 2",
    "max_corrupt = 50": "max_corrupt = 0",
    "collect_seconds = 3600": "collect_seconds = 60",
    "--min-clients 50 ": "--min-clients 2 ",
    "--min-clients-floor 100": "--min-clients-floor 2",
}
"""What differs from the document: a round of two clients, not of a thousand."""
HOST = "aggregator.example"
FOLDERS = {HOLDERS: ("bank-a", "bank-b", "bank-c", "bank-d"), CLIENTS: ("phone-1", "phone-2")}
UPDATE = "0123456789abcdef0123456789abcdef"
TRAINING = """
import numpy as np

def update(model):
    return {name: np.full(value.shape, 0.01, np.float32) for name, value in model.items()}
"""
EXAMPLE = """
import torch

def example():
    return torch.nn.Linear(4, 2), torch.nn.functional.mse_loss, torch.randn(8, 4), torch.randn(8, 2)
"""


def smaller(text: str) -> str:
    for said, meant in SMALLER.items():
        text = text.replace(said, meant)
    return text


def test_everything_that_is_made_smaller_is_in_the_document() -> None:
    assert [said for said in SMALLER if said not in HOW_TO] == []


def test_every_block_of_commands_is_typed() -> None:
    """A block that has a language is a file or code; what starts with a program's name is a command."""
    typed = [command.text.split()[0] for command in commands(HOW_TO)]
    assert set(typed) == {"he-authority", "he-server", "he-holder", "he-client", "cp", "mv", "mkdir"}
    assert len([program for program in typed if program.startswith("he-")]) == len(re.findall("^he-", HOW_TO, re.M))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """What `he-server init --database-url` is told, or "" for nothing."""
    if request.param == "sqlite":
        yield ""
    else:
        with new_database() as url:
            yield url


@pytest.mark.long
async def test_the_how_to(tmp_path: Path, database: str) -> None:
    port = free_port()
    key, certificate = self_signed(HOST)
    (tmp_path / "key.pem").write_bytes(key)
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "plan.toml").write_text(smaller(marked(HOW_TO, "plan", "toml")))
    (tmp_path / "project.toml").write_text(marked(HOW_TO, "project", "toml"))
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "training.py").write_text(TRAINING)
    (tmp_path / "mine.py").write_text(EXAMPLE)
    initial = f"import torch\nmodule = torch.nn.Linear(4, 2)\n{marked(HOW_TO, 'initial')}"
    subprocess.run([sys.executable, "-c", initial], check=True, cwd=tmp_path)
    shapes = {name: value.shape for name, value in load_file(tmp_path / "initial.safetensors").items()}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "update.safetensors")

    async with Tunnel(port) as tunnel:
        environment = {
            "HTTPS_PROXY": tunnel.url,
            "HUSHSUM_CLIENT_TLS_CA": str(tmp_path / "cert.pem"),
            "HUSHSUM_HOLDER_TLS_CA": str(tmp_path / "cert.pem"),
            "HUSHSUM_SERVER_PORT": str(port),
            "HUSHSUM_PASSPHRASE": "correct horse battery",
        }
        terminal = Terminal(tmp_path, environment, port, FOLDERS)
        try:
            for command in commands(HOW_TO):
                await terminal.type(told(command, terminal, database))
        finally:
            await terminal.stop()
        assert tunnel.asked == {f"{HOST}:443"}
    said = "\n".join(terminal.printed)
    assert said.count("round 3 of 3: model version 3") == len(FOLDERS[CLIENTS])


def told(command: Command, terminal: Terminal, database: str) -> Command:
    """With what only a reader can fill in."""
    text = smaller(command.text)
    if text.startswith("he-server init") and database:
        text += f" --database-url {database}"
    if "TASK_HASH" in text:
        text = text.replace("TASK_HASH", payload_hash((terminal.folder / "task.jws").read_text().strip()).hex())
    if UPDATE in text:
        text = text.replace(UPDATE, re.findall(r"\b[0-9a-f]{32}\b", "\n".join(terminal.printed))[-1])
    return Command(text, command.comment)
