"""How a schedule is run, from its first operation to the last check."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog

from he_server.sweep import sweep

from .invariants import Observer
from .liar import make_lie, tell
from .machine import UNTOUCHED, VirtualLoop, enter
from .schedules import Operation, Schedule
from .seams import simulated
from .world import CLIENTS, COLLECT, HOLDERS, LEASE, OPENING, WORKERS, Record, World

WAITS = (1, LEASE + 1, COLLECT + 1, OPENING + 1, 3700)
SWEEP_SECONDS = 3600.0
LOG_LEVEL = 50
HEALING = 12
"""Times that everybody gets a turn after the last operation; each is followed by a wait of a lease."""


def run(schedule: Schedule) -> Record:
    """Run one schedule in a world of its own. Raises AssertionError where an invariant does not hold.

    The same schedule has the same outcome.
    """
    _warm_up()
    try:
        return _run_once(schedule)
    finally:
        gc.collect()


@cache
def _warm_up() -> None:
    """The first connections of a process ask databases what they are; and kernels are compiled."""
    _run_once(Schedule(0, (Operation("gather"), Operation("open"))))
    gc.collect()
    gc.freeze()


def _run_once(schedule: Schedule) -> Record:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LOG_LEVEL))
    loop = VirtualLoop()
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="hushsum-simulation-", dir=memory if memory.is_dir() else None)
    try:
        observer = Observer()
        gc.disable()  # one collection afterwards costs less than those on the way
        world = World(loop, Path(folder), observer.watch)
        observer.world = world
        with simulated(world, schedule.number, streamed=schedule.streamed):
            loop.run_until_complete(_run(world, observer, schedule.operations))
            _end(loop, world)
        machines = (world.server, *world.holders, *world.devices)
        world.record.counts["lies"] = world.record.lies
        world.record.counts["crashed"] = sum(machine.crashes for machine in machines)
        return world.record
    except BaseException as error:
        error.add_note("\n".join([str(schedule), "what happened:", *world.record.trace]))
        raise
    finally:
        gc.enable()
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
        case "resend":
            if frames := world.sent():
                frame = frames[-1 - pick % len(frames)]
                await world.run(world.resend(frame, frame.task), fate, "resend")
        case "misdirect":
            if len(world.tasks) == 1:
                await world.run(world.rotate(), UNTOUCHED, "rotate")
            if frames := [frame for frame in world.sent() if frame.task is not world.task]:
                await world.run(world.resend(frames[-1 - pick % len(frames)], world.task), fate, "misdirect")
        case "work":
            await world.run(world.work(who % WORKERS), fate, f"work({who % WORKERS})")
        case "answer":
            if who % HOLDERS not in world.out:
                await world.run(world.answer(who % HOLDERS), fate, f"answer({who % HOLDERS})")
        case "lie":
            invented, unopened = bool(pick % 2), bool(pick // 2 % 2)
            told = sorted({who % HOLDERS, (who + pick) % HOLDERS})
            if unopened:
                await _set_the_stage(world, told)
            lie = make_lie(world, invented=invented, unopened=unopened, pick=pick // 4)
            for holder in told:
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


async def _set_the_stage(world: World, holders: Sequence[int]) -> None:
    """These holders have opened the newest round as it is, and the next one has updates."""
    await world.run(world.gather(), UNTOUCHED, "gather")
    for holder in holders:
        if holder not in world.out:
            await world.run(world.answer(holder), UNTOUCHED, f"answer({holder})")
    for client in range(CLIENTS - 1):  # so that it is not full
        if client not in world.busy:
            await world.run(world.contribute(client), UNTOUCHED, f"contribute({client})")


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
