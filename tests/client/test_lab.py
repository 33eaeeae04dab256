"""What labs and their clients refuse, and how clients of one process train: without any server."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from he_client import cli, lab
from he_client.importing import load_named
from he_client.lab import MARK, InTurn, Lab, as_client, together
from he_party.files import write_durably
from he_party.threads import abandonable
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS
from he_server.cli import lab as starter
from he_server.cli import main as server
from he_testing import lab as program
from he_testing.deployment import ProvisionedDeployment
from he_testing.lab_task import committee, initial_model
from he_testing.problems import expect_problem

MODELS = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

net = Net()
arrays = {"coef_": np.zeros((1, 2)), "intercept_": np.zeros(1)}
listed = [np.zeros(3), [1.0, 2.0]]
counts = {"n": np.zeros(3, dtype=int)}
nothing = {}
number = 3

def make():
    return arrays

def fails():
    raise KeyError("data")

def fit(model):
    return model

def told(model, context, client):
    return model, context, client
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("HUSHSUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my.py").write_text(MODELS)


def init(*words: str) -> Result:
    return CliRunner().invoke(program.app, ["init", *words])


def up(*words: str) -> Result:
    return CliRunner().invoke(program.app, ["up", *words])


def train(*words: str) -> Result:
    return CliRunner().invoke(cli.app, ["train", *words])


def refused(result: Result, why: str) -> None:
    assert result.exit_code == 2, result.output
    assert why in result.stderr
    assert "Traceback" not in result.output
    assert len([line for line in result.stderr.splitlines() if "never for real data" not in line]) == 1


@pytest.fixture
def made() -> Path:
    """A lab that is not up."""
    done = init("mylab", "--clients", "3", "--model", "my.py:arrays")
    assert done.exit_code == 0, done.output
    return Path("mylab")


def test_a_lab_is_a_deployment_that_can_be_opened_again(made: Path) -> None:
    opened = ProvisionedDeployment(made)
    config = opened.task.config
    assert (config.rounds.min_clients, config.rounds.max_clients) == (3, 3)
    assert (str(opened.task.committee), config.privacy.unit, config.aggregation.weighting) == (
        "2/4/3",
        "none",
        "uniform",
    )
    assert opened.holders == [f"holder-{number}" for number in (1, 2, 3, 4)]
    assert [folder.name for folder in Lab.open(made).clients] == [f"client-{number:02}" for number in (1, 2, 3)]
    assert opened.identity(3).name == "client-03"
    assert "never for real data" in (made / MARK).read_text()
    assert load_file(made / "initial.safetensors").keys() == {"coef_", "intercept_"}


def test_a_cap_weighs_by_examples() -> None:
    assert init("mylab", "--model", "my.py:arrays", "--weight-cap", "50").exit_code == 0
    aggregation = ProvisionedDeployment(Path("mylab")).task.config.aggregation
    assert (aggregation.weighting, aggregation.weight_cap) == ("examples", 50)


def test_clients_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 99, 100, 101, 1):
        (tmp_path / f"client-{number:02}").mkdir()
    assert [folder.name[7:] for folder in Lab(tmp_path).clients] == ["01", "02", "10", "99", "100", "101"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("my.py",), "is there already"),
        (("x" * 300,), "cannot make"),
        (("my.py/lab",), "cannot make"),
        (("new", "--value-range", "nan"), "value_range"),
        (("new", "--value-range", "-1"), "value_range"),
        (("new", "--value-range", "1e9"), "no scale is small enough"),
        (("new", "--weight-cap", "inf"), "weight_cap"),
        (("new", "--model", "missing.safetensors"), "cannot read the model"),
        (("new", "--model", "my.py"), "cannot read the model"),
        (("new", "--model", "none.py:model"), "cannot import"),
        (("new", "--model", "my.py:missing"), "module 'my.py' has no attribute 'missing'"),
        (("new", "--model", "my.py:number"), "a torch module that trains something"),
        (("new", "--model", "my.py:nothing"), "a torch module that trains something"),
        (("new", "--model", "my.py:counts"), "tensor 'n'"),
        (("new", "--model", "my.py:fails"), "KeyError: 'data'"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_init_refuses_leaves_nothing(tmp_path: Path, words: tuple[str, ...], why: str) -> None:
    before = sorted(tmp_path.iterdir())
    refused(init(*words, *(() if "--model" in words else ("--model", "my.py:arrays"))), why)
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_no_keys_are_made_in_clear_when_a_passphrase_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUSHSUM_PASSPHRASE", "correct horse battery staple")
    refused(init("mylab", "--model", "my.py:arrays"), "lie unprotected")
    assert not Path("mylab").exists()


def test_models_of_many_kinds(tmp_path: Path) -> None:
    save_file({"w": np.ones(2)}, tmp_path / "model.safetensors")
    assert {name: value.shape for name, value in initial_model("my.py:arrays").items()} == {
        "coef_": (1, 2),
        "intercept_": (1,),
    }
    assert initial_model("my.py:make").keys() == initial_model("my.py:arrays").keys()
    assert {name: value.shape for name, value in initial_model("my.py:listed").items()} == {
        "array-0": (3,),
        "array-1": (2,),
    }
    for name in ("my.py:net", "my.py:Net", "model.safetensors"):
        (tensor,) = initial_model(name).items()
        assert (tensor[0], tensor[1].dtype, tensor[1].tolist()) == ("w", np.float32, [1.0, 1.0])


def test_a_file_is_imported_by_its_path_and_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "beside.py").write_text("there = 2\n")
    (tmp_path / "folder" / "json.py").write_text("from beside import there\nhere = there + 1\n")
    assert load_named("folder/json.py:here") == 3
    assert load_named("json:dumps")([1]) == "[1]"
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(ProblemError, match=r"ZeroDivisionError.*\(broken.py, line 2\)"):
        load_named("broken.py:x")


@pytest.mark.parametrize("holders", range(2, 11))
def test_every_committee_outlives_one_traitor(holders: int) -> None:
    numbers = committee(holders)
    assert numbers.holders == holders
    assert numbers.colluders >= max(1, (holders - 1) // 3)


def test_only_a_lab_goes_up_and_only_once(made: Path) -> None:
    refused(up("."), "is no lab")
    with Lab.open(made).held():
        refused(up("mylab"), "up already")
    (made / "task.jws").unlink()
    refused(up("mylab"), "damaged")


def test_a_port_that_is_taken_is_named(made: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused(up("mylab", "--port", str(port)), f"cannot listen on port {port}")
        (made / "joined").write_text(f"http://127.0.0.1:{port}")
        refused(up("mylab"), "--port 0 takes a free one")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--all",), "the clients of a --lab"),
        (("--client", "1"), "the clients of a --lab"),
        (("--lab", "mylab"), "which clients"),
        (("--lab", "mylab", "--all", "--client", "1"), "which clients"),
        (("--lab", "mylab", "--all", "--task", "x"), "its own server"),
        (("--lab", ".", "--all"), "is no lab"),
        (("--lab", "mylab", "--all"), "the lab is not up"),
    ],
    ids=" ".join,
)
def test_what_train_refuses(made: Path, words: tuple[str, ...], why: str) -> None:
    refused(train("my.py:fit", *words), why)


def test_of_a_lab_that_was_killed_nobody_waits_for_the_server(made: Path) -> None:
    url = made / lab.URL_FILE
    url.write_text("http://127.0.0.1:1")
    with Lab.open(made).held():
        assert Lab.open(made).url() == "http://127.0.0.1:1"
        refused(train("my.py:fit", "--lab", "mylab", "--client", "4"), "1 to 3")
    refused(train("my.py:fit", "--lab", "mylab", "--all"), "the lab is not up")
    assert not url.exists()


def test_whoever_comes_while_the_lab_starts_waits_for_the_server(made: Path) -> None:
    asked = ThreadPoolExecutor(1)
    with Lab.open(made).held():
        url = asked.submit(Lab.open(made).url)
        with pytest.raises(TimeoutError):
            url.result(0.3)
        write_durably(made / lab.URL_FILE, b"http://127.0.0.1:1")  # as labs do: at no moment is it there and empty
        assert url.result(10) == "http://127.0.0.1:1"


def test_a_lab_that_ends_while_it_starts_is_not_up(made: Path) -> None:
    with Lab.open(made).held():
        url = ThreadPoolExecutor(1).submit(Lab.open(made).url)
    with expect_problem(BAD_SETTINGS, "not up"):
        url.result(10)


def test_a_function_is_told_which_client_it_is() -> None:
    def with_default(model: dict[str, object], client: int = 9) -> int:
        return client

    told = load_named("my.py:told")
    assert as_client(told, 2)({}, "context") == ({}, "context", 2)
    assert as_client(with_default, 0)({}) == 0
    assert as_client(with_default, None)({}) == 9
    assert as_client(print, 1) is print
    assert as_client(dict, 1) is dict
    with pytest.raises(ProblemError, match="which client of a lab"):
        as_client(told, None)


async def test_clients_train_one_at_a_time_and_none_sends_before_all_have() -> None:
    run, inside, said = InTurn(3), [], []

    def work(name: str) -> tuple[str, int]:
        inside.append(name)
        said.append(f"trained with {len(inside)}")
        inside.remove(name)
        return name, 1

    async def client(name: str) -> None:
        await run(partial(work, name))
        said.append("sends")

    await together(*(client(name) for name in "abc"))
    assert said == ["trained with 1"] * 3 + ["sends"] * 3


async def test_when_one_fails_the_others_send_nothing() -> None:
    run, said = InTurn(2), []

    async def good() -> None:
        await run(lambda: 1)
        said.append("sends")

    async def bad() -> None:
        await run(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(together(good(), bad()), 10)
    assert said == []
    assert await abandonable(lambda: 2) == 2


def test_the_server_program_hands_over(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, words: started.append(words))
    assert CliRunner().invoke(server.app, ["lab", "init", "x", "--model", "m", "--help"]).exit_code == 0
    assert started == [[sys.executable, "-P", "-m", "he_testing.lab", "init", "x", "--model", "m", "--help"]]
    monkeypatch.setattr(starter, "NEEDED", ("no_such_module",))
    refused(CliRunner().invoke(server.app, ["lab", "up", "x"]), "pip install 'hushsum[quickstart]'")
    assert len(started) == 1
