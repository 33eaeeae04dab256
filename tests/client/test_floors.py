"""What a device asks of a task, whatever the authority signed: each floor stops what it is for and nothing else."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from he_client import Floors, HushSumClient
from he_client import client as client_module
from he_client.cli import app
from he_client.floors import check_floors
from he_client.settings import ClientSettings
from he_party.http_transport import RetryPolicy
from he_party.settings import SETTINGS_FILE
from he_protocol.problems import BAD_SETTINGS, BELOW_FLOOR
from he_protocol.task import Task
from he_testing.fake_server import FakeServer
from he_testing.problems import expect_problem
from tests.support.parties import NOW, World

DP = {
    "unit": "client",
    "clip_norm": 1.0,
    "noise_multiplier": 8.0,
    "delta": 1e-6,
    "epsilon_budget": 3.0,
}
PLAN = {
    "scheme": "kahe",
    "profile": "kahe-30",
    "value_range": 0.5,
    "scale": 4096.0,
    "privacy": DP,
    "min_clients": 20,
    "max_clients": 40,
}
ASKED = Floors(min_clients=20, unit="client", epsilon=3.0, delta=1e-5, collusion=0)


def made(**changes: Any) -> Task:
    privacy = DP | changes.pop("privacy", {})  # type: ignore[operator]
    return World(changes.pop("holders", 3), PLAN | {"privacy": privacy} | changes).task  # type: ignore[arg-type]


WEAK = {
    "min_clients": ({"min_clients": 19}, Floors(19, "client", 3.0, 1e-5, 0)),
    "unit": ({"privacy": {"unit": "record"}}, Floors(20, "record", 3.0, 1e-5, 0)),
    "no_unit": ({"privacy": {"unit": "none"}}, Floors(20, "none", inf, 1e-5, 0)),
    "epsilon": ({"privacy": {"noise_multiplier": 1.0, "epsilon_budget": 99.0}}, Floors(20, "client", 99.0, 1e-5, 0)),
    "delta": ({"privacy": {"delta": 1e-4}}, Floors(20, "client", 3.0, 1e-4, 0)),
    "holders": ({"holders": 4, "threshold": 2}, Floors(20, "client", 3.0, 1e-5, 1)),
}


@pytest.mark.parametrize(("changes", "lower"), WEAK.values(), ids=WEAK.keys())
def test_each_floor_refuses_what_is_below_it_and_nothing_else_does(changes: dict[str, object], lower: Floors) -> None:
    asked = ASKED if "holders" not in changes else Floors(20, "client", 3.0, 1e-5, 2)
    check_floors(made(), ASKED)
    task = made(**changes)
    with expect_problem(BELOW_FLOOR):
        check_floors(task, asked)
    check_floors(task, lower)


def test_more_than_was_asked_for_is_fine() -> None:
    check_floors(made(), Floors(unit="record", epsilon=50.0))
    check_floors(made(privacy={"unit": "none"}), Floors())
    with expect_problem(BELOW_FLOOR, "inf"):
        check_floors(made(privacy={"unit": "none"}), Floors(epsilon=1e9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_clients": 0},
        {"unit": "some"},
        {"epsilon": 0.0},
        {"epsilon": float("nan")},
        {"delta": 1.0},
        {"collusion": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_floors_that_are_none(wrong: dict[str, object]) -> None:
    with expect_problem(BAD_SETTINGS):
        Floors(**wrong)  # type: ignore[arg-type]


async def test_nothing_is_sealed_for_a_task_below_our_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when it is asked for nor when it comes from somewhere else; off, an update is sealed."""
    world = World(3, {"scheme": "kahe", "profile": "kahe-14", "scale": 16.0})
    task, me = world.task, world.client("device")
    async with FakeServer(task) as server:

        def device(floors: Floors | None) -> HushSumClient:
            return HushSumClient(
                server.url, me, state_dir=tmp_path, floors=floors, clock=lambda: NOW, retry=RetryPolicy(give_up=0)
            )

        async with device(Floors(min_clients=50)) as client:
            with expect_problem(BELOW_FLOOR, "at least 50"):
                await client.task(task.id)
            with expect_problem(BELOW_FLOOR):
                await client.encrypt(task, lambda a, b: np.zeros(b - a, dtype=np.int64), base_version=0)
            assert not (tmp_path / "updates").exists()
            with monkeypatch.context() as off:
                off.setattr(client_module, "check_floors", lambda task, floors: None)
                assert (await client.task(task.id)).id == task.id
                await client.encrypt(task, lambda a, b: np.zeros(b - a, dtype=np.int64), base_version=0)
        async with device(None) as client:
            assert (await client.task(task.id)).id == task.id


def test_init_keeps_the_floors_where_every_later_command_finds_them(tmp_path: Path) -> None:
    folder = tmp_path / "phone-1"
    flags = ["--min-clients", "50", "--unit", "client", "--epsilon", "4", "--delta", "1e-6", "--collusion", "1"]
    done = CliRunner().invoke(app, ["init", "--name", "phone-1", "--data-dir", str(folder), *flags])
    assert done.exit_code == 0, done.output
    floors = Floors(50, "client", 4.0, 1e-6, 1)
    assert ClientSettings.load(data_dir=folder).floors == floors
    assert (folder / SETTINGS_FILE).stat().st_mode & 0o077 == 0
    other = tmp_path / "settings.toml"
    other.write_text(f'data_dir = "{folder}"\nfloor_epsilon = 2.0\n')
    assert ClientSettings.load(other).floors == Floors(50, "client", 2.0, 1e-6, 1)
    assert ClientSettings.load(other, floor_min_clients=60).floors == Floors(60, "client", 2.0, 1e-6, 1)


def test_init_without_floors_asks_for_little(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--name", "phone-1", "--data-dir", str(tmp_path / "p")])
    assert done.exit_code == 0, done.output
    assert ClientSettings.load(data_dir=tmp_path / "p").floors == Floors()


def test_init_refuses_a_floor_that_is_none(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", "--name", "p", "--data-dir", str(tmp_path / "p"), "--unit", "some"])
    assert done.exit_code == 2
    assert not (tmp_path / "p").exists()


def test_init_keeps_where_the_server_is_and_which_task(tmp_path: Path) -> None:
    folder, ca = tmp_path / "phone-1", tmp_path / "ca.pem"
    about = ["--server", "https://hub.example/fl", "--task", "keyboard", "--tls-ca", str(ca)]
    done = CliRunner().invoke(app, ["init", "--name", "phone-1", "--data-dir", str(folder), *about])
    assert done.exit_code == 0, done.output
    kept = ClientSettings.load(data_dir=folder)
    assert (kept.server, kept.task, kept.tls_ca) == ("https://hub.example/fl", "keyboard", ca)
    assert ClientSettings.load(data_dir=folder, task="other").task == "other"


def test_init_refuses_a_server_that_can_never_answer(tmp_path: Path) -> None:
    about = ["--data-dir", str(tmp_path / "p"), "--server", "hub.example"]
    done = CliRunner().invoke(app, ["init", "--name", "p", *about])
    assert done.exit_code == 2
    assert not (tmp_path / "p").exists()
