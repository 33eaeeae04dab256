"""How a schedule is run, from its first operation to the last check."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import structlog

from he_protocol.schemes.registry import insecure_profiles
from he_protocol.task import Task
from he_server.jobs.garbage import collect_garbage

from .invariants import Observer, Violation
from .liar import ATTACKS, PROOFS, certify, make_lie, tell
from .machine import UNTOUCHED, VirtualLoop, enter
from .schedules import HOLDERS, Operation, Schedule
from .seams import simulated
from .world import CLIENTS, COLLECT, LEASE, OPENING, USUAL, WORKERS, Record, Setting, World

WAITS = (1, LEASE + 1, COLLECT + 1, OPENING + 1, 3700)
STEPS = ("work", "answers", "work", "answers", "answers", "work")
"""Of a round that is full: it is shown to the holders, screened, formed, voted for, released, and published."""
GARBAGE_SECONDS = 3600.0
LOG_LEVEL = 50
HEALING = 40
"""Times that everybody gets a turn after the last operation, at most."""
NEXT = 3
"""Rounds in which the task must go on, whatever happened: a recovery may cost one."""
PATIENCE = 3
"""Turns without progress, each followed by a wait of a lease, before the operator does something."""


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


@insecure_profiles()
def _run_once(schedule: Schedule) -> Record:
    gc.disable()  # one collection afterwards costs less than those on the way
    try:
        with staged(schedule) as (world, observer):
            world.loop.run_until_complete(_run(world, observer, schedule.operations))
    finally:
        gc.enable()
    return world.record


@contextmanager
def staged(schedule: Schedule, setting: Setting = USUAL) -> Iterator[tuple[World, Observer]]:
    """A world of its own, with an observer, until nothing runs in it any more. What is raised in it gets a note of what
    had happened."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LOG_LEVEL))
    loop = VirtualLoop()
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="hushsum-simulation-", dir=memory if memory.is_dir() else None)
    try:
        observer = Observer()
        world = World(loop, Path(folder), observer.watch, schedule, setting)
        observer.world = world
        with simulated(world, schedule.number, streamed=schedule.streamed):
            try:
                yield world, observer
            finally:
                _end(loop, world)
        machines = (world.server, *world.holders, *world.devices)
        world.record.counts["lies"] = world.record.lies
        world.record.counts["crashed"] = sum(machine.crashes for machine in machines)
    except BaseException as error:
        error.add_note("\n".join([str(schedule), "what happened:", *world.record.trace]))
        raise
    finally:
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
    if world.record.restored or world.record.counts["abandon"]:
        await _go_on(world, observer)
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
            await _open(world, observer, operation)
        case "straggle":
            await _straggle(world)
        case "spoil" if who % CLIENTS not in world.busy:
            broken = frozenset(index for index in range(HOLDERS) if index == pick % HOLDERS or pick >> (2 + index) & 1)
            await world.run(world.contribute(who % CLIENTS, broken), fate, f"spoil({who % CLIENTS}, {sorted(broken)})")
        case "revoke":
            await world.run(world.revoke(who % CLIENTS), fate, "revoke")
        case "abandon":
            live = world.seen("SELECT task_hash, number FROM rounds WHERE state IN ('closed', 'opening') ORDER BY id")
            for task_hash, number in live[:1]:
                task = next(task for task in world.tasks if task.id == task_hash)
                await world.run(world.abandon(task, number), fate, f"abandon({number})")
        case "restore":
            if world.restore(pick):
                observer.forget()
                await _as_nobody(world.boot())
                world.record.trace.append("restored an older disk of the server")
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
            await _lie(world, operation)
        case "wait":
            await asyncio.sleep(WAITS[pick % len(WAITS)])
            world.record.trace.append(f"wait {WAITS[pick % len(WAITS)]}")
        case "sweep":
            if pick % 2:  # the product sweeps so often
                await asyncio.sleep(GARBAGE_SECONDS + 1)
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


async def _open(world: World, observer: Observer, operation: Operation) -> None:
    """A round from its updates to its sum, or one time in four the beginning of that. The fate is of one step."""
    who, pick = operation.who, operation.pick
    without, worker = who % HOLDERS, who % WORKERS
    world.back_up()
    if not observer.rounds("closed", "opening"):
        await world.run(world.gather(), UNTOUCHED, "gather")
    partial = pick % 4 == 3
    steps = STEPS[: 1 + pick // 4 % len(STEPS)] if partial else STEPS
    doomed = len(steps) - 1 if partial else len(steps) - 1 - pick // 4 % len(steps)
    for number, step in enumerate(steps):
        fate = operation.fate if number == doomed else UNTOUCHED
        if step == "work":
            await world.run(world.work(worker), fate, f"work({worker})")
        else:
            await world.run(world.answers(without), fate, f"answers(without {without})")


async def _straggle(world: World) -> None:
    """The newest round waits for its key holders, and devices that have trained on the same model come after it."""
    for client in range(CLIENTS):
        if client == CLIENTS // 2:
            await asyncio.sleep(COLLECT + 1)
            await world.run(world.work(0), UNTOUCHED, "work(0)")
        if client not in world.busy:
            await world.run(world.contribute(client), UNTOUCHED, f"contribute({client})")


async def _lie(world: World, operation: Operation) -> None:
    """A lie, told to some of the honest holders, who are then asked for their shares."""
    who, pick = operation.who, operation.pick
    count, honest = 1 + pick // len(ATTACKS) % 3, world.honest
    told = sorted({honest[(who + number) % len(honest)] for number in range(count)} - world.out)
    (numbering, unopened), proof = ATTACKS[pick % len(ATTACKS)], PROOFS[(who // 3 + pick) % len(PROOFS)]
    if unopened or not world.seen("SELECT 1 FROM rounds WHERE task_hash = ? AND manifest != ''", world.task.id):
        await _set_the_stage(world)
    lie = make_lie(world, numbering=numbering, unopened=unopened, pick=pick)
    if lie is None:
        return
    what = f"lie {numbering}, opening {lie.manifest.opening}, {len(lie.frames)} updates"
    for holder in told:
        await world.run(tell(world, lie, holder), operation.fate, f"{what}: vote({holder})")
    certify(world, lie, proof)
    for holder in told:
        await world.run(tell(world, lie, holder), operation.fate, f"{proof}: release({holder})")


async def _set_the_stage(world: World) -> None:
    """The newest round is opened as it is, and the next one has updates."""
    await world.run(world.gather(), UNTOUCHED, "gather")
    for step in STEPS[1:]:
        what = world.work(0) if step == "work" else world.answers(HOLDERS)
        await world.run(what, UNTOUCHED, step)
    for client in range(CLIENTS - 1):  # so that it is not full
        if client not in world.busy:
            await world.run(world.contribute(client), UNTOUCHED, f"contribute({client})")


async def _sweep(world: World) -> str:
    await world.boot()
    enter(world.server)
    await collect_garbage(world.running, GARBAGE_SECONDS)
    return "swept"


async def _heal(world: World, observer: Observer) -> None:
    """Everybody is back, but for the traitor, and gets turns until nothing is left to do."""
    world.out.clear()
    world.unsent.update(range(CLIENTS))
    await world.run(world.revoke(None), UNTOUCHED, "heal: revoke")  # a restored server has lost the list
    idle, before, tried = 0, observer.progress(), list[tuple[Task, int]]()
    for _ in range(HEALING):
        await world.thaw()
        for client in sorted(world.unsent):
            await world.run(world.finish(client), UNTOUCHED, f"heal: finish({client})")
        await world.run(world.work(0), UNTOUCHED, "heal: work")
        if observer.rounds("closed", "opening"):
            await world.run(world.answers(HOLDERS), UNTOUCHED, "heal: answers")
            await world.run(world.work(0), UNTOUCHED, "heal: work")
        observer.check()
        if observer.quiet():
            return
        now = observer.progress()
        idle, before = idle + 1 if now == before else 0, now
        if idle:
            await asyncio.sleep(LEASE + 1)
        if idle >= PATIENCE:
            tried = await _intervene(world, observer, tried)


async def _go_on(world: World, observer: Observer) -> None:
    """Whatever was lost or given up: devices that train on get their next model."""
    before = world.version()
    for _ in range(NEXT):
        if world.record.lies or world.version() > before or not observer.openings_left(world.task.id):
            return
        await world.run(world.gather(), UNTOUCHED, "go on: gather")
        await _heal(world, observer)
    if world.version() == before:
        raise Violation("the task goes on", f"version {before} is the last one")


async def _intervene(world: World, observer: Observer, before: list[tuple[Task, int]]) -> list[tuple[Task, int]]:
    """What an operator does about rounds that key holders refuse: have the server go on after what they have seen, and
    give one up where that has not helped `before`."""
    stuck = observer.stuck()
    for task, number in stuck[:1]:
        if stuck == before:
            await world.run(world.abandon(task, number), UNTOUCHED, f"heal: abandon({number})")
        else:
            await world.run(world.recover(task), UNTOUCHED, "heal: recover")
    return stuck


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
