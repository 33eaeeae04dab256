"""Whole rounds between real processes, and processes that die in the middle of them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from he_client import HushSumClient
from he_protocol.problems import TOO_FEW_CLIENTS
from he_testing.deployment import SECONDS
from he_testing.problems import expect_problem
from tests.integration.processes import OPENING_SECONDS, Processes, Round


async def said_of(client: HushSumClient, processes: Processes, number: int) -> dict[str, str]:
    """What key holders have said about a round; those that said nothing are not there."""
    status = await client.round(processes.task, number)
    return {one.holder: one.said for one in status.committee if one.said}


async def test_sums_are_exact_round_after_round(processes: Processes, clients: list[HushSumClient]) -> None:
    first = await Round(processes, clients, seed=1).publish()
    second = await Round(processes, clients[:3], seed=2).publish()  # closed by the deadline, with the minimum
    assert second == first + 1


async def test_too_few_clients_by_the_deadline_fail_the_round(
    processes: Processes, clients: list[HushSumClient]
) -> None:
    round_ = Round(processes, clients, seed=3)
    await round_.submit(until=2)
    for client, sent in zip(clients[:2], round_.sent, strict=True):
        with expect_problem(TOO_FEW_CLIENTS):
            await client.wait(processes.task, sent, within=SECONDS)


@pytest.mark.long
async def test_one_dead_holder_of_four_changes_nothing(processes: Processes, clients: list[HushSumClient]) -> None:
    version = (await clients[0].pull_model(processes.task)).version
    processes.kill("holder-2")
    round_ = Round(processes, clients, seed=4)
    assert await round_.publish() == version + 1
    opened = await clients[0].round(processes.task, round_.sent[0].round)
    assert opened.seconds["wait_shares"] < OPENING_SECONDS  # nobody waits for the fourth


async def test_with_two_dead_holders_a_round_waits_and_goes_on_when_they_are_back(
    processes: Processes, clients: list[HushSumClient]
) -> None:
    """Nothing fails. The status says who is missing, and who has done its part."""
    version = (await clients[0].pull_model(processes.task)).version
    processes.kill("holder-1")
    processes.kill("holder-3")
    lost = Round(processes, clients, seed=5)
    await lost.submit()
    async with asyncio.timeout(SECONDS):
        while "holder-2" not in (said := await said_of(clients[0], processes, lost.sent[0].round)) or len(said) < 2:
            await asyncio.sleep(0.02)
    assert said == {"holder-2": "screened", "holder-4": "screened"}
    assert (await clients[0].pull_model(processes.task)).version == version
    processes.start_holder("holder-1")
    assert await lost.wait() == version + 1
    assert await Round(processes, clients, seed=6).publish() == version + 2


async def test_a_holder_that_dies_while_it_opens_answers_after_its_restart(
    processes: Processes, clients: list[HushSumClient]
) -> None:
    """Holders 1 and 3 are needed, and one of them is killed with the round before it."""
    processes.kill("holder-2")
    with processes.frozen("holder-3"):
        round_ = Round(processes, clients, seed=7)
        await round_.submit()
        async with asyncio.timeout(SECONDS):
            while len(await said_of(clients[0], processes, round_.sent[0].round)) < 2:
                await asyncio.sleep(0.02)
        processes.kill("holder-1")
        processes.start_holder("holder-1")
    await round_.wait()


@pytest.mark.parametrize(
    "moment",
    [pytest.param("open", marks=pytest.mark.long), pytest.param("just closed", marks=pytest.mark.long), "screened"],
)
async def test_a_killed_server_publishes_an_acknowledged_update_exactly_once(
    processes: Processes, clients: list[HushSumClient], moment: str
) -> None:
    version = (await clients[0].pull_model(processes.task)).version
    round_ = Round(processes, clients, seed=8)
    if moment == "open":
        await round_.submit(until=1)
        processes.kill("server")
    elif moment == "just closed":
        await round_.submit()
        processes.kill("server")
    else:
        with processes.frozen(*processes.holders):
            await round_.submit()
            async with asyncio.timeout(SECONDS):
                while not (await clients[0].round(processes.task, round_.sent[0].round)).opening:
                    await asyncio.sleep(0.02)
            processes.kill("server")
    processes.start_server()
    if moment == "open":
        await round_.submit()
    assert await round_.wait() == version + 1
    following = Round(processes, clients, seed=9)
    assert await following.publish() == version + 2
    assert following.sent[0].round == round_.sent[0].round + 1


@pytest.mark.long
async def test_a_second_process_on_a_holders_ledger_does_no_harm(
    processes: Processes, clients: list[HushSumClient]
) -> None:
    """Both answer, with the same bytes: every round is decided once and published once."""
    processes.kill("holder-3")
    processes.start_holder("holder-1", as_name="holder-1-again")
    version = (await clients[0].pull_model(processes.task)).version
    for step in (1, 2):
        assert await Round(processes, clients, seed=10 + step).publish() == version + step
    assert processes.terminate("holder-1-again") == 0
    log = processes.log("holder-1") + processes.log("holder-1-again")
    assert "Traceback" not in log
    with closing(sqlite3.connect(processes.root / "holder-1" / "ledger.db")) as ledger:
        rounds, distinct = ledger.execute("SELECT count(round), count(DISTINCT round) FROM votes").fetchone()
        refused_for = {problem for (problem,) in ledger.execute("SELECT problem FROM refusals")}
    assert rounds == distinct > 0
    assert refused_for == set()


async def test_the_terminated_server_finishes_what_it_began(processes: Processes, clients: list[HushSumClient]) -> None:
    """SIGTERM in the middle of a round: exit code 0, and the acknowledged updates are there afterwards."""
    round_ = Round(processes, clients, seed=13)
    await round_.submit(until=3)
    assert processes.terminate("server") == 0
    log = processes.log("server")
    assert '"event": "draining"' in log
    assert '"event": "stopped"' in log.rstrip().splitlines()[-1]
    processes.start_server()
    await round_.wait()


@pytest.mark.long
async def test_terminated_holders_end_with_exit_code_0(processes: Processes) -> None:
    for name in processes.holders:
        assert processes.terminate(name) == 0
        assert "Traceback" not in processes.log(name)
