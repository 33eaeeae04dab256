"""What `he-holder join`, `run`, `status` and `ledger` do."""

from __future__ import annotations

import asyncio
import signal

from he_holder.agent import Agent, serve
from he_holder.ceremony.run import Ceremony
from he_holder.cli.options import open_holder
from he_holder.epochs import destroy, joined_tasks, state_of
from he_holder.holder import KeyHolder, check_reachable
from he_holder.settings import Settings
from he_party import console
from he_party.board import ServerBoard
from he_party.http_transport import HttpTransport
from he_party.tasks import MEMORY_FILE, TaskMemory
from he_protocol.committee import describe
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import valid_until
from he_protocol.privacy.plan import epsilon
from he_protocol.problems import BAD_PLAN
from he_protocol.task import Task


async def join(settings: Settings, name: str, server: str, patience: float) -> None:
    async with (
        open_holder(settings) as holder,
        HttpTransport(server, holder.identity, tls=settings.tls) as transport,
    ):
        memory = TaskMemory(settings.data_dir / MEMORY_FILE, holder.identity.authority)
        for joined, _ in await joined_tasks(holder):
            await asyncio.to_thread(memory.learn, joined)
        task = await transport.task(name, memory)
        await holder.join(task, server)
        console.out.print(f"joined {task.config.name!r} ({task.id[:16]}...)\n{describe(task.committee)}")
        if task.scheme.ceremony:
            board = ServerBoard(transport, task)
            work = Ceremony(holder, task, board, patience=patience, progress=console.err.print)
            console.out.print(f"joint key {(await work.run()).hex()}")


async def run(settings: Settings) -> None:
    async with open_holder(settings) as holder:
        agents = [
            Agent(
                holder,
                task,
                url,
                poll_seconds=settings.poll_seconds,
                destroy_after=settings.destroy_after,
                tls=settings.tls,
            )
            for task, url in await joined_tasks(holder)
            if await _served(holder, task)
        ]
        if not agents:
            raise ProblemError(BAD_PLAN, "no task to serve; 'he-holder join' joins one")
        work = asyncio.ensure_future(serve(holder, agents))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        try:
            await work
        except asyncio.CancelledError:
            console.err.print("stopped")


async def _served(holder: KeyHolder, task: Task) -> bool:
    """Not so an epoch whose keys are gone, or belong to the ledger that a restored one is a copy of; nor a task that we
    have left, or whose rounds we would refuse, all of them."""
    state = await state_of(holder, task)
    if state == "open":
        try:
            check_reachable(task, holder.min_clients_floor)
        except ProblemError as refusal:
            console.err.print(f"not served: {refusal}", markup=False, soft_wrap=True)
            return False
        return True
    if state == "destroyed":
        await destroy(holder, task)  # finishes what a crash may have cut short
    console.err.print(f"{task.config.name}, epoch {task.config.epoch}: {state}, not served")
    return False


async def status(settings: Settings) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    async with open_holder(settings) as holder:
        for task, url in await joined_tasks(holder):
            votes = await holder.ledger.votes(task.hash)
            used = votes[-1].opening if votes else 0
            rows.append(
                {
                    "task": task.config.name,
                    "epoch": task.config.epoch,
                    "hash": task.id,
                    "state": await state_of(holder, task),
                    "server": url,
                    "keys": "not needed" if not task.scheme.ceremony else holder.secret_path(task, "key").exists(),
                    "committee": str(task.committee),
                    "f": task.committee.colluders,
                    "openings": used,
                    "votes": len(votes),
                    "max_openings": task.config.rounds.max_openings,
                    "model_version": votes[-1].model_version if votes else 0,
                    "epsilon": round(epsilon(task.config.privacy, used), 4),
                    "epsilon_budget": task.config.privacy.epsilon_budget,
                    "credential_until": valid_until(holder.identity.credential),
                }
            )
    return rows


async def ledger(settings: Settings) -> list[dict[str, object]]:
    rows: list[tuple[float, dict[str, object]]] = []
    async with open_holder(settings) as holder:
        for task, _ in await joined_tasks(holder):
            name = task.config.name
            for vote in await holder.ledger.votes(task.hash):
                left = "not settled" if vote.settled is None else "settled"
                text = f"opening {vote.opening}: {vote.updates} updates on model {vote.model_version}, {left}"
                rows.append((vote.decided, _decision(name, vote.round, "voted", vote.manifest_hash, text)))
            for said in await holder.ledger.refusals(task.hash):
                rows.append((said.seen, _decision(name, said.round, said.problem, said.manifest_hash, said.detail)))
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _decision(task: str, number: int, decision: str, manifest: bytes, detail: str) -> dict[str, object]:
    return {"task": task, "round": number, "decision": decision, "manifest": manifest.hex(), "detail": detail}
