"""The turn of an epoch, by the commands that an operator types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from he_protocol.task import Task
from tests.integration.processes import CLIENTS, TASK, Processes, Round
from tests.support.schemes import SCHEMES

pytestmark = pytest.mark.long  # tests/holder/test_epochs.py turns epochs without processes


@pytest.fixture(params=SCHEMES, ids=[scheme for scheme, _ in SCHEMES])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Processes]:
    """A deployment of its own: the test changes its keys."""
    processes = Processes(tmp_path, *request.param)
    try:
        processes.start()
        yield processes
    finally:
        processes.stop()


def turn(processes: Processes, newest: Path) -> Task:
    """Rotate, enroll, sign and add the next epoch, and let every holder join it."""
    root = processes.root
    authority: list[str | Path] = ["--authority-dir", root / "authority"]
    credentials = [root / name / "credential.jws" for name in processes.holders]
    for name, credential in zip(processes.holders, credentials, strict=True):
        processes.command("he-holder", "rotate", "--data-dir", root / name)
        request = [root / name / "enroll-request.jws", "--role", "holder", *authority]
        processes.command("he-authority", "enroll", *request, "--renews", credential, "--out", credential)
    listed: list[str | Path] = [word for credential in credentials for word in ("--holder", credential)]
    signed: list[str | Path] = ["--model", newest, "--out", root / "next.jws"]
    processes.command("he-authority", "task", "next", root / "task.jws", *listed, *signed, *authority)
    processes.command("he-server", "task", "add", root / "next.jws", "--model", newest, "--data-dir", root / "server")
    processes.join()
    for name in processes.holders:
        assert processes.terminate(name) == 0
    processes.heal()
    return Task.from_token((root / "next.jws").read_text().strip(), processes.identity(1).authority)


async def test_rounds_go_on_under_new_keys_and_the_old_ones_are_gone(fresh: Processes) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(fresh.client(number)) for number in range(1, CLIENTS + 1)]
        before = fresh.task
        await Round(fresh, clients, seed=30).publish()
        newest = fresh.root / "newest.safetensors"
        save_file((await clients[0].pull_model(before)).tensors, newest)
        after = turn(fresh, newest)
        assert (await clients[0].task(TASK)).hash == after.hash
        await Round(fresh, clients, seed=31).publish()  # the old epoch, under its old keys
        fresh.task = after
        await Round(fresh, clients, seed=32).publish()
        old = {path for name in fresh.holders for path in (fresh.root / name).rglob(f"{before.id}-*")}
        keys = {path for name in fresh.holders for path in (fresh.root / name / "hpke").iterdir()}
        for name in fresh.holders:
            fresh.command("he-holder", "destroy-epoch", before.id, "--yes", "--data-dir", fresh.root / name)
        assert not any(path.exists() for path in old)
        assert sum(path.exists() for path in keys) == len(keys) / 2 == len(fresh.holders)
        await Round(fresh, clients, seed=33).publish()
