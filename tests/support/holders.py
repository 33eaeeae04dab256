"""Real `KeyHolder`s of a test world, with folders and ledgers of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from he_holder.holder import EpochSecret, KeyHolder, SubshareSeed
from he_holder.ledger import Ledger
from he_holder.opening import Openings
from he_party.http_transport import HttpTransport, RetryPolicy
from he_party.keyfile import write_private
from he_party.transport import Transport
from he_protocol.task import Task
from tests.support.parties import NOW, World

QUICK = RetryPolicy(first=0.01, longest=0.02, give_up=1.0)
PLAN_FILE = """
name = "demo"
epoch = 1

[encryption]
scheme = "{scheme}"
profile = "{profile}"

[privacy]
unit = "client"
clip_norm = 1.0
noise_multiplier = 4.0
delta = 1e-5
epsilon_budget = 100.0

[rounds]
min_clients = 3
max_clients = 8
collect_seconds = 60
opening_seconds = 60
staleness = 2
max_openings = 10

[aggregation]
value_range = 4.0

[committee]
threshold = 1
agreement = 1
allow_no_collusion = true
"""


@asynccontextmanager
async def holder_of(
    world: World,
    index: int,
    folder: Path,
    *,
    clock: Callable[[], float] = lambda: NOW,
    floor: int = 2,
    passphrase: str = "",
) -> AsyncIterator[KeyHolder]:
    """One holder; opening it a second time on the same folder is a restart."""
    directory = folder / world.committee[index].name
    ledger = await Ledger.open(directory / "ledger.db")
    holder = KeyHolder(
        world.committee[index], ledger, directory, min_clients_floor=floor, passphrase=passphrase, clock=clock
    )
    if not directory.joinpath("hpke").exists():
        holder.keyring.add(world.hpke[index])
    try:
        yield holder
    finally:
        await ledger.close()


def give_key(world: World, index: int, holder: KeyHolder, *, epoch: int | None = None) -> None:
    """What the ceremony would have left with this holder."""
    seeds = tuple(SubshareSeed(part, seed) for part, seed in sorted(world.dealt[0][index].items()))
    task = world.task
    secret = EpochSecret(task.hash, task.config.epoch if epoch is None else epoch, seeds)
    write_private(holder.secret_path(task, "key"), secret, holder.passphrase)


async def open_round(holder: KeyHolder, task: Task, number: int, line: Transport) -> None:
    """Do whatever a server asks of one round, until the share has left."""
    openings = Openings(holder, task)
    while await openings.serve(number, line) != "release":
        pass


def line_to(url: str, holder: KeyHolder) -> HttpTransport:
    """A transport that gives up quickly."""
    return HttpTransport(url, holder.identity, retry=QUICK)
