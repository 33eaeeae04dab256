"""What may have left is spent: no server talks a device out of counting an update, and none is counted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from msgspec.structs import replace

from he_client import HushSumClient
from he_client.client import SPENDING_FILE
from he_client.spending import Spending
from he_party.http_transport import RetryPolicy
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.privacy.plan import PrivacyPlan, epsilon, spent_together
from he_protocol.problems import BUDGET_EXHAUSTED, INTERNAL, MALFORMED, NOT_FOUND, STALE_UPDATE, ProblemType
from he_protocol.task import Task
from he_testing.fake_server import FakeServer, refusal
from he_testing.problems import expect_problem
from tests.support.parties import NOW, World

PRIVACY = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "epsilon_budget": 100.0}
NUMBERS = {"scheme": "kahe", "profile": "kahe-30", "value_range": 0.5, "scale": 64.0}
UPDATE = {"w": np.full(50, 0.01, dtype=np.float32)}
ONCE = RetryPolicy(give_up=0)


class Liar(FakeServer):
    """Takes every update and says something else of it."""

    says: ProblemType = STALE_UPDATE
    taken = 0

    async def lie(self, request: web.Request) -> web.Response:
        await request.read()
        self.taken += 1
        return refusal(ProblemError(self.says, "as the test asks"))


@pytest.fixture
def parties() -> World:
    return World(plan=NUMBERS | {"privacy": PRIVACY}, tensors=(TensorSpec("w", (50,)),))


def client(world: World, server: FakeServer, folder: Path, resumable_above: int = 1 << 30) -> HushSumClient:
    return HushSumClient(
        server.url, world.client("c"), state_dir=folder, clock=lambda: NOW, retry=ONCE, resumable_above=resumable_above
    )


def liar(task: Task, says: ProblemType) -> Liar:
    server = Liar(task)
    server.says = says
    server.replaced = Always(server)
    return server


class Always(dict):  # type: ignore[type-arg]
    """Whatever is put or posted under the task is taken and lied about."""

    def __init__(self, server: Liar) -> None:
        self._server = server

    def get(self, key: tuple[str, str], honest: object = None) -> object:
        return self._server.lie if key[0] in {"PUT", "POST"} else honest


@pytest.mark.parametrize("says", [STALE_UPDATE, INTERNAL, NOT_FOUND], ids=lambda problem: problem.slug)
@pytest.mark.parametrize("resumable_above", [1 << 30, 0], ids=["put", "in pieces"])
async def test_a_server_that_takes_updates_and_denies_it_changes_nothing(
    parties: World, tmp_path: Path, says: ProblemType, resumable_above: int
) -> None:
    task = parties.task
    async with liar(task, says) as server:
        for number in range(1, 4):
            async with client(parties, server, tmp_path, resumable_above) as device:
                with expect_problem(says):
                    await device.submit(task, UPDATE, base_version=0)
            async with client(parties, server, tmp_path) as restarted:
                assert restarted.privacy_spent(task) == epsilon(task.config.privacy, number)
        assert server.taken >= 3  # type: ignore[attr-defined]


async def test_what_is_sent_again_counts_once_and_what_was_not_sent_not_at_all(parties: World, tmp_path: Path) -> None:
    task = parties.task
    async with liar(task, INTERNAL) as server, client(parties, server, tmp_path) as device:
        zeros = np.zeros(task.length, dtype=np.int64)
        sealed = await device.encrypt(task, lambda start, stop: zeros[start:stop], base_version=0)
        assert device.privacy_spent(task) == 0
        for _ in range(3):
            with expect_problem(INTERNAL):
                await device.upload(task, sealed)
        assert device.privacy_spent(task) == epsilon(task.config.privacy, 1)


def test_it_is_on_the_disk_before_anything_is_sent(
    parties: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    path = tmp_path / "spent"
    monkeypatch.setattr("he_party.lines.os.fsync", lambda _: synced.append(path.read_bytes()))
    Spending(path).count(parties.task, "aa" * 16)
    assert len(synced) == 2  # the file, then the folder that names it
    assert synced[0].endswith(b"\n")


def test_epochs_of_a_job_add_up_and_other_jobs_do_not(parties: World, tmp_path: Path) -> None:
    first, plan = parties.task, parties.task.config.privacy
    second = parties.signed(first.config, epoch=2)
    wider = parties.signed(first.config, epoch=3, privacy=replace(plan, noise_multiplier=2.0, delta=1e-6))
    other = parties.signed(first.config, name="other-job")
    spending = Spending(tmp_path / "spent")
    for number, task in enumerate((first, second, second, wider, other)):
        spending.count(task, f"{number:032x}")
    for task in (first, second, wider):
        expected = spent_together([(plan, 3), (wider.config.privacy, 1)], task.config.privacy)
        assert spending.account(task) == expected
    assert spending.account(first).epsilon > epsilon(plan, 3)
    assert spending.account(other).epsilon == epsilon(plan, 1)


def test_a_line_that_a_crash_cut_off_was_not_sent(parties: World, tmp_path: Path) -> None:
    path = tmp_path / "spent"
    spending, task = Spending(path), parties.task
    spending.count(task, "aa" * 16)
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    assert spending.account(task).epsilon == epsilon(task.config.privacy, 1)
    spending.count(task, "bb" * 16)
    assert spending.account(task).epsilon == epsilon(task.config.privacy, 2)
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with expect_problem(MALFORMED):
        spending.account(task)


def test_units_do_not_add_up_as_if_they_were_one() -> None:
    client_level = PrivacyPlan("client", 1.0, 4.0, 1.0, 1e-5, 8.0)
    record_level = PrivacyPlan("record", 1.0, 4.0, 0.1, 1e-5, 8.0)
    both = [(client_level, 2), (record_level, 2)]
    assert spent_together(both, client_level).epsilon == float("inf")
    assert spent_together([(PrivacyPlan("none"), 1), (client_level, 1)], client_level).epsilon == float("inf")
    assert spent_together([(PrivacyPlan("none"), 0), (client_level, 1)], client_level).epsilon == epsilon(
        client_level, 1
    )
    replaced = replace(client_level, noise_multiplier=2.0)
    assert epsilon(replaced, 2) < spent_together(both, record_level).epsilon < epsilon(replaced, 2) + 2


@pytest.mark.parametrize("defence", [True, False], ids=["on", "off"])
async def test_a_device_seals_nothing_beyond_what_it_was_promised(
    parties: World, tmp_path: Path, defence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(parties.task.config.privacy, epsilon_budget=epsilon(parties.task.config.privacy, 2) + 0.01)
    task = parties.signed(parties.task.config, privacy=plan)
    if not defence:
        monkeypatch.setattr("he_client.spending.Spending._check", lambda *_: None)
    async with liar(task, STALE_UPDATE) as server, client(parties, server, tmp_path) as device:
        for _ in range(2):
            with expect_problem(STALE_UPDATE):
                await device.submit(task, UPDATE, base_version=0)
        with expect_problem(BUDGET_EXHAUSTED if defence else STALE_UPDATE):
            await device.submit(task, UPDATE, base_version=0)
        assert server.taken == (2 if defence else 3)  # type: ignore[attr-defined]
        assert device.privacy_spent(task) == epsilon(plan, server.taken)  # type: ignore[attr-defined]
        assert (tmp_path / SPENDING_FILE).stat().st_mode & 0o777 == 0o600


async def test_sealed_ones_that_wait_count_for_the_next(parties: World, tmp_path: Path) -> None:
    plan = replace(parties.task.config.privacy, epsilon_budget=epsilon(parties.task.config.privacy, 1) + 0.01)
    task = parties.signed(parties.task.config, privacy=plan)
    zeros = np.zeros(task.length, dtype=np.int64)
    async with liar(task, INTERNAL) as server, client(parties, server, tmp_path) as device:
        await device.encrypt(task, lambda start, stop: zeros[start:stop], base_version=0)
        with expect_problem(BUDGET_EXHAUSTED):
            await device.encrypt(task, lambda start, stop: zeros[start:stop], base_version=0)


def test_a_devices_own_bound_is_kept_where_the_plan_allows_more(parties: World, tmp_path: Path) -> None:
    spending = Spending(tmp_path / "spent", max_epsilon=1.0)
    with expect_problem(BUDGET_EXHAUSTED, "epsilon at most 1.0"):
        spending.count(parties.task, "aa" * 16)
    assert spending.account(parties.task).epsilon == 0
