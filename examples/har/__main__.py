"""The demo: `python -m examples.har`. See README.md in this folder."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.live import Live

from examples.har import data, report
from examples.har.model import network
from examples.har.training_rounds import Phones, RoundResult
from he_client.training import arrays
from he_protocol.committee import Committee, describe, parse_committee
from he_protocol.errors import ProblemError
from he_protocol.task import Task
from he_testing.deployment import LocalDeployment

TASK = "har-demo"
COMMITTEE = "2/4/3"
DELTA = 1e-5
LONG = 40
SHORT_RUN = (0.2, 1.2)
LONG_RUN = (0.1, 1.5)
"""Poisson sampling rate and noise multiplier; runs of more than `LONG` rounds take smaller, more protected steps."""

DOWN_ROUNDS, WAIT_SECONDS = 2, 15.0
"""How long key holders killed by `--outage` are away: so many rounds, or seconds of a round that waits for them."""

console = Console()
PROFILES = {"kahe": "kahe-16", "ckks": "ckks-8192"}

VALUE_RANGE = 4.0
"""Of a rotated update: eight typical coordinates of the sum of some 60 clipped gradients that point one way."""


def plan(scheme: str, rounds: int, clients: int, records: int, spare: int, committee: Committee) -> dict[str, Any]:
    """The task's plan: DP-FedSGD at record level; docs/how-to.md explains such files."""
    sampling_rate, noise_multiplier = SHORT_RUN if rounds <= LONG else LONG_RUN
    return {
        "name": TASK,
        "epoch": 1,
        "encryption": {"scheme": scheme, "profile": PROFILES[scheme]},
        "privacy": {
            "unit": "record",
            "clip_norm": 1.0,
            "noise_multiplier": noise_multiplier,
            "sampling_rate": sampling_rate,
            "delta": DELTA,
            "epsilon_budget": 8.0,
        },
        "rounds": {
            "min_clients": clients,
            "max_clients": clients,
            "collect_seconds": 120,
            "opening_seconds": 30,
            "staleness": 1,
            "max_openings": rounds + spare,
        },
        "aggregation": {
            "value_range": VALUE_RANGE,
            "rotation": True,
            "weighting": "fixed",
            "weight_cap": sampling_rate * records,
            "optimiser": {"learning_rate": 0.4, "momentum": 0.9},
        },
        "committee": {
            "threshold": committee.threshold,
            "agreement": committee.agreement,
            "allow_no_collusion": committee.colluders < 1,
        },
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="rounds to publish")] = 30,
    scheme: Annotated[str, typer.Option(help="encryption scheme: " + ", ".join(PROFILES))] = "kahe",
    directory: Annotated[Path, typer.Option(help="keys, logs and databases of the run; emptied first")] = Path(
        "demo-run"
    ),
    report_file: Annotated[Path, typer.Option("--report", help="JSON report; the plot goes beside it")] = Path(
        "demo-report.json"
    ),
    outage: Annotated[
        int, typer.Option(help="kill this many key holders after a third of the rounds, later bring them back")
    ] = 0,
    committee: Annotated[
        str, typer.Option(help="key holders: how many open a sum / how many there are / how many must vote for it")
    ] = COMMITTEE,
) -> None:
    """24 phones train an activity recogniser; a server sums what it cannot read; key holders vote, and open the sum."""
    torch.set_num_threads(2)
    if scheme not in PROFILES:
        console.print(f"unknown scheme {scheme!r}; known: {', '.join(PROFILES)}", style="red")
        raise typer.Exit(2)
    try:
        asyncio.run(run(rounds, scheme, directory.absolute(), report_file, outage, parse_committee(committee)))
    except ProblemError as refusal:
        console.print(f"refused {refusal}", style="red", soft_wrap=True)
        raise typer.Exit(2) from None


async def run(rounds: int, scheme: str, directory: Path, report_file: Path, outage: int, committee: Committee) -> None:
    """Set up, train, report, tear down."""
    started = time.monotonic()
    phones, unseen = data.load()
    shutil.rmtree(directory, ignore_errors=True)
    records = sum(len(client) for client in phones.values())
    with console.status("enrolling 24 phones and the key holders, signing the task"):
        wanted = plan(scheme, rounds, len(phones), records, 5, committee)
        deployment = await asyncio.to_thread(
            LocalDeployment, directory, wanted, arrays(network()), clients=len(phones), holders=committee.holders
        )
    try:
        with console.status("starting the server; the key holders join"):
            await asyncio.to_thread(deployment.start)
        pids = ", ".join(f"{name} {process.pid}" for name, process in deployment.running.items())
        console.print(f"server at {deployment.url}; process ids: {pids}; logs in {directory}/")
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(deployment.client(number)) for number in range(1, len(phones) + 1)
            ]
            task = await clients[0].task(TASK)
            console.print(describe(task.committee))
            members = list(zip(clients, phones.values(), strict=True))
            console.print(
                f"planned epsilon {clients[0].privacy_planned(task):.2f} at delta {DELTA:g}, should all"
                f" {task.config.rounds.max_openings} openings be used"
            )
            results = await train(deployment, Phones(task, members, unseen), task, rounds, outage)
    finally:
        await asyncio.to_thread(deployment.stop)
    finish(task, results, report_file, time.monotonic() - started)


async def train(deployment: LocalDeployment, phones: Phones, task: Task, rounds: int, outage: int) -> list[RoundResult]:
    """Rounds until enough are published; with `outage`, key holders die on the way and come back."""
    results: list[RoundResult] = []
    victims = deployment.holders[:outage]
    with Live(console=console, auto_refresh=False) as live:
        while sum(not row.failure for row in results) < rounds:
            if victims and len(results) == rounds // 3:
                for name in victims:
                    deployment.kill(name)
                live.console.print(f"killed {', '.join(victims)}", style="yellow")
            back = victims and len(results) == rounds // 3 + DOWN_ROUNDS
            waits = victims and outage > task.committee.away and len(results) == rounds // 3
            if back and outage <= task.committee.away:
                await _start(deployment, victims, live.console)
            async with asyncio.TaskGroup() as group:
                if waits:
                    group.create_task(_bring_back(deployment, phones, task, victims, live.console))
                result = await phones.round()
            results.append(result)
            if result.failure:
                live.console.print(f"round {result.number} failed: {result.failure}", style="red")
            live.update(report.table(task, results), refresh=True)
    return results


async def _start(deployment: LocalDeployment, names: list[str], shown: Console) -> None:
    for name in names:
        await asyncio.to_thread(deployment.start_holder, name)
    shown.print(f"started {', '.join(names)} again", style="yellow")


async def _bring_back(
    deployment: LocalDeployment, phones: Phones, task: Task, names: list[str], shown: Console
) -> None:
    """Too many are gone for a round to go on: say for whom it waits, then start them."""
    await asyncio.sleep(WAIT_SECONDS)
    waiting = await phones.waiting()
    for number, missing in waiting.items():
        shown.print(f"round {number} waits for {', '.join(missing)}", style="yellow")
    await _start(deployment, names, shown)


def finish(task: Task, results: list[RoundResult], path: Path, seconds: float) -> None:
    """Write the report and the plot, print the summary."""
    summary = report.write_json(path, task, results, seconds)
    picture = path.with_suffix(".png")
    report.plot(picture, task, results)
    console.print(
        f"\n[bold]{summary['accuracy']:.1%}[/bold] of the unseen people's activities recognised, "
        f"epsilon {summary['epsilon']:.2f} at delta {DELTA:g} (record level, what is opened)\n"
        f"{summary['bytes_per_parameter']:.2f} bytes per parameter uploaded, where plain float32 has 4; "
        f"largest difference from the plain sum of integers: {summary['max_abs_error_vs_plain_sum']:g}\n"
        f"{summary['rounds']} rounds in {seconds:.0f} s; report in {path}, plot in {picture}"
    )


if __name__ == "__main__":
    typer.run(main)
