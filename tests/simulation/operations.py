"""What can happen in a schedule, and how one is run from its first operation to the last check."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import structlog

from he_server.sweep import sweep

from .invariants import Observer
from .liar import make_lie, tell
from .machine import UNTOUCHED, Fate, FateKind, VirtualLoop, enter
from .world import CLIENTS, COLLECT, HOLDERS, LEASE, OPENING, WORKERS, Record, World, simulated

Kind = Literal[
    "gather",
    "open",
    "contribute",
    "resend",
    "misdirect",
    "work",
    "answer",
    "lie",
    "wait",
    "sweep",
    "rotate",
    "outage",
    "reboot",
    "thaw",
]
WAITS = (1, LEASE + 1, COLLECT + 1, OPENING + 1, 3700)
SWEEP_SECONDS = 3600.0
LOG_LEVEL = 50
HEALING = 12
"""Times that everybody gets a turn after the last operation; each is followed by a wait of a lease."""


@dataclass(frozen=True)
class Operation:
    """`who` and `pick` are taken modulo what there is to choose from."""

    kind: Kind
    who: int = 0
    pick: int = 0
    fate: Fate = UNTOUCHED


# Often what makes rounds go on, now and then what disturbs them.
_WEIGHTS: dict[Kind, int] = {
    "gather": 6,
    "open": 6,
    "contribute": 4,
    "resend": 2,
    "misdirect": 2,
    "work": 4,
    "answer": 3,
    "lie": 3,
    "wait": 4,
    "sweep": 2,
    "rotate": 2,
    "outage": 1,
    "reboot": 1,
    "thaw": 2,
}
_FATES: dict[FateKind, int] = {"none": 10, "kill": 3, "power": 3, "freeze": 5, "cut": 2}
_POINTS: dict[Kind, int] = {"gather": 270, "open": 65, "contribute": 50, "work": 70, "answer": 75, "lie": 75}
"""About how many points the longer operations have; the others have at most `_OTHER_POINTS`."""
_OTHER_POINTS = 12
LONGEST = 12
"""Operations in a schedule."""


@dataclass(frozen=True)
class Schedule:
    """`number`: what all randomness in it comes from. streamed: see `simulated`."""

    number: int
    operations: tuple[Operation, ...]
    streamed: bool = False

    def __str__(self) -> str:
        return "\n  ".join([f"schedule {self.number}, streamed: {self.streamed}", *map(repr, self.operations)])


def draw(number: int) -> Schedule:
    """The schedule of this number, the same one always."""
    rng = random.Random(number)
    size = rng.randint(1, LONGEST)
    return Schedule(number, tuple(_operation(rng) for _ in range(size)), rng.random() < 1 / 2)


def _operation(rng: random.Random) -> Operation:
    kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    fate = rng.choices(list(_FATES), list(_FATES.values()))[0]
    # Often near one of the ends: many operations are shorter than the longest of their kind, and at the end of those
    # is what cannot be taken back.
    where = rng.random() ** 2
    at = int(rng.choice((where, 1 - where)) * _POINTS.get(kind, _OTHER_POINTS))
    return Operation(kind, rng.randrange(12), rng.randrange(64), Fate(fate, at))


def run(schedule: Schedule) -> Record:
    """Run one schedule in a world of its own. Raises AssertionError where an invariant does not hold.

    The same schedule has the same outcome.
    """
    _warm_up()
    return _run_once(schedule)


@cache
def _warm_up() -> None:
    """The first connections of a process ask databases what they are; and kernels are compiled."""
    _run_once(Schedule(0, (Operation("gather"), Operation("open"))))


def _run_once(schedule: Schedule) -> Record:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LOG_LEVEL))
    loop = VirtualLoop()
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="hushsum-simulation-", dir=memory if memory.is_dir() else None)
    try:
        observer = Observer()
        logging.disable(logging.CRITICAL)  # dead machines' code complains as it unwinds
        gc.disable()  # a collection costs as much as a schedule
        world = World(loop, Path(folder), observer.watch)
        observer.world = world
        with simulated(world, schedule.number, streamed=schedule.streamed):
            loop.run_until_complete(_run(world, observer, schedule.operations))
            _end(loop, world)
        machines = (world.server, *world.holders, *world.devices)
        world.record.counts["crashed"] = sum(machine.crashes for machine in machines)
        return world.record
    except BaseException as error:
        error.add_note("\n".join([str(schedule), "what happened:", *world.record.trace]))
        raise
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
        loop.close()
        shutil.rmtree(folder)
        structlog.reset_defaults()


async def _run(world: World, observer: Observer, schedule: Sequence[Operation]) -> None:
    await _as_nobody(world.boot())
    for operation in schedule:
        await _step(world, observer, operation)
        observer.check()
    await world.run(world.work(1), UNTOUCHED, "others go on: work(1)")
    await world.thaw()
    observer.begin_healing()
    await _heal(world, observer)
    await _as_nobody(observer.final())


async def _step(world: World, observer: Observer, operation: Operation) -> None:
    world.record.counts[operation.kind] += 1
    who, pick = operation.who, operation.pick
    fate = operation.fate
    match operation.kind:
        case "contribute" if who % CLIENTS not in world.busy:
            await world.run(world.contribute(who % CLIENTS), fate, f"contribute({who % CLIENTS})")
        case "gather":
            await world.run(world.gather(), fate, "gather")
        case "open":
            if not observer.rounds("opening"):
                await world.run(world.gather(), UNTOUCHED, "gather")
            answers = world.answers(who % HOLDERS)
            await world.run(answers, UNTOUCHED, f"answers(without {who % HOLDERS})")
            await world.run(world.work(who % WORKERS), fate, f"work({who % WORKERS})")
        case "resend" | "misdirect":
            frames = [world.record.frames[update] for update in world.record.sent]
            if frames:
                frame = frames[-1 - pick % len(frames)]
                task = frame.task if operation.kind == "resend" else world.task
                await world.run(world.resend(frame, task), fate, operation.kind)
        case "work":
            await world.run(world.work(who % WORKERS), fate, f"work({who % WORKERS})")
        case "answer":
            if who % HOLDERS not in world.out:
                await world.run(world.answer(who % HOLDERS), fate, f"answer({who % HOLDERS})")
        case "lie":
            lie = make_lie(world, invented=bool(pick % 2), pick=pick // 2)
            for holder in {who % HOLDERS, (who + pick) % HOLDERS}:
                if lie is not None:
                    await world.run(tell(world, lie, holder), fate, f"lie({holder})")
        case "wait":
            await asyncio.sleep(WAITS[pick % len(WAITS)])
            world.record.trace.append(f"wait {WAITS[pick % len(WAITS)]}")
        case "sweep":
            if pick % 2:  # the product sweeps so often
                await asyncio.sleep(SWEEP_SECONDS + 1)
            await world.run(_sweep(world), fate, "sweep")
        case "rotate":
            await world.run(world.rotate(), fate, "rotate")
        case "outage":
            world.out ^= {who % HOLDERS}
        case "reboot":
            machine = [world.server, *world.holders, *world.devices][who % (1 + HOLDERS + CLIENTS)]
            if machine.alive:
                machine.crash(power=bool(pick % 2))
                world.record.trace.append(f"reboot {machine.name}")
        case "thaw":
            await world.thaw()


async def _sweep(world: World) -> str:
    await world.boot()
    enter(world.server)
    await sweep(world.running, SWEEP_SECONDS)
    return "swept"


async def _heal(world: World, observer: Observer) -> None:
    """Everybody is back and gets turns until nothing is left to do."""
    world.out.clear()
    world.unsent.update(range(CLIENTS))
    for _ in range(HEALING):
        await world.thaw()
        for client in sorted(world.unsent):
            await world.run(world.finish(client), UNTOUCHED, f"heal: finish({client})")
        await world.run(world.work(0), UNTOUCHED, "heal: work")
        if observer.rounds("opening"):
            for holder in range(HOLDERS):
                await world.run(world.answer(holder), UNTOUCHED, f"heal: answer({holder})")
            await world.run(world.work(0), UNTOUCHED, "heal: work")
        observer.check()
        if observer.quiet():
            return
        await asyncio.sleep(LEASE + 1)


async def _as_nobody(what: object) -> None:
    """Without an activity: no points are counted."""
    await asyncio.get_running_loop().create_task(what)  # type: ignore[arg-type]


def smallest(schedule: Schedule) -> Schedule:
    """A failing schedule without the operations that it fails without, and without fates that do not matter."""
    at = len(schedule.operations)
    while at:
        at -= 1
        before, here, after = schedule.operations[:at], schedule.operations[at], schedule.operations[at + 1 :]
        for instead in ((), (replace(here, fate=UNTOUCHED),)):
            simpler = replace(schedule, operations=(*before, *instead, *after))
            if simpler != schedule and fails(simpler):
                schedule = simpler
                break
    return schedule


def fails(schedule: Schedule) -> bool:
    """Whether running it raises anything."""
    try:
        run(schedule)
    except Exception:
        return True
    return False


def _end(loop: VirtualLoop, world: World) -> None:
    loop.run_until_complete(_stop(world))
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))


async def _stop(world: World) -> None:
    for machine in (world.server, *world.holders, *world.devices):
        machine.stop()
