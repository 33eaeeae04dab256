"""`python -m tests.simulation.day`: a day in the life of six devices, by the virtual clock, for every seed.

Each device runs what `he-client train --rounds 1` does, as a timer would, every 10 to 30 minutes. Meanwhile devices
crash, lose their power or their connection, sleep, also in the middle of a training, have clocks that are wrong by
hours or a year, run out of their credential, get a new one, and are enrolled again under a new key, the old one
revoked. Nobody helps: the authority's renewals are a timer, too. See `Attendance` for what must hold, besides all that
holds in every schedule.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import count
from multiprocessing import get_context
from random import Random
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from he_authority.enrollment import SECONDS_PER_DAY, issue_credential
from he_client.rounds import train_rounds
from he_client.spool import SpooledUpdate
from he_client.tensors import Tensors
from he_protocol.identity.jws import public_from_jwk, read_unverified
from he_protocol.messages import Credential
from he_protocol.problems import EXPIRED_CREDENTIAL, OLD_REVOCATIONS, PROBLEMS, UNAUTHENTICATED
from he_protocol.schemes.registry import insecure_profiles
from he_testing.parties import enroll_request

from .attendance import Attendance
from .invariants import Observer, Violation
from .machine import START, UNTOUCHED, Fate, FateKind
from .operations import staged
from .schedules import HOLDERS, Schedule
from .soak import fix_hashes, mute
from .world import NAME, OPENING, Record, Setting, World, one_hot

DEVICES = 6
HOURS = 24
MINUTE, HOUR, YEAR = 60.0, 3600.0, 365 * 86_400.0
COLLECT = 15
PLAN: dict[str, Any] = {
    "collect_seconds": COLLECT,
    "buckets": 1,
    "staleness": 2,
    "max_openings": 1000,
    "update_lifetime": int(2 * HOUR),
}
TURN = (10 * MINUTE, 30 * MINUTE)
"""Between two runs of a device's timer, which all have about at the same time."""
JITTER, TRAINING = 6.0, (0.5, 5.0)
"""Together less than a round collects."""
CALM = 4
"""Turns at the end in which nothing happens to anybody: whoever has been away is back, and takes part."""
TRAININGS = 2 * 3600 / TURN[0]
"""Of a device in an hour, at most: also those of an update that is made again."""
VISIT = 5 * MINUTE
"""So often the authority sees to its credentials and its list."""
VALID = 3 * HOUR
"""How long a credential lasts; a list of revoked keys twice as long."""
RENEWAL = (-40 * MINUTE, 30 * MINUTE)
"""When a credential is renewed, before or after it has expired."""
LOOK = 3.0
"""Seconds between two looks of the server and the key holders at what there is to do."""

Trouble = Literal["", "sleep", "clock", "enrolment"]
BETWEEN: dict[Trouble, int] = {"": 88, "sleep": 5, "clock": 4, "enrolment": 3}
"""What happens to a device between two turns, and how often of a hundred times."""
CRASHED: dict[Trouble, int] = {"": 50, "sleep": 20, "clock": 15, "enrolment": 15}
"""After a crash: an update may be in the spool."""
TRAINED: dict[Trouble, int] = {"": 89, "sleep": 3, "clock": 5, "enrolment": 3}
"""What happens while it trains."""
FATES: dict[FateKind, int] = {"none": 74, "kill": 11, "power": 11, "cut": 4}
HARSH: dict[FateKind, int] = {"none": 30, "kill": 35, "power": 30, "cut": 5}
"""How a run ends in whose training something has happened."""
POINTS = ((0, 40), (40, 65), (40, 65), (65, 150))
"""Those that a run has before its update is sealed, then before it has a receipt, and then while it waits."""
SLEEPS = ((5 * MINUTE, HOUR), (5 * MINUTE, HOUR), (HOUR, 3 * HOUR), (4 * HOUR, 8 * HOUR))
"""How long: also for several model versions, for longer than an update lives, and than a credential lasts."""
WRONG = ((HOUR, 2 * HOUR), (3 * HOUR, 48 * HOUR), (YEAR, YEAR))
"""How far a clock is from the right time."""
SAID_TO_WRONG_CLOCKS = {UNAUTHENTICATED.slug, EXPIRED_CREDENTIAL.slug, OLD_REVOCATIONS.slug}
SHOWN = 400
"""Lines of what had happened that a failure is shown with."""


@cache
def _setting(hours: float) -> Setting:
    return Setting(DEVICES, int(hours * TRAININGS * DEVICES), (PLAN,))


class Day:
    """What happens in one world from midnight on."""

    def __init__(self, world: World, observer: Observer, seed: int, hours: float) -> None:
        self._world = world
        self._observer = observer
        self._attendance = Attendance()
        self._counts = world.record.counts
        self._length = world.task.length
        self._vectors = count()
        self._dice = [Random(f"{seed} {who}") for who in range(DEVICES + 1)]
        self._turns = _turns(self._dice[DEVICES], hours * HOUR)
        self._calm = self._turns[-CALM]
        self._asleep: set[int] = set()
        self._right_at: dict[int, float] = {}
        self._renew_at: dict[int, float] = {}
        self._revoked: set[bytes] = set()
        self._lists = 0
        self._listed = float("-inf")
        self._published = 0
        self._living = DEVICES

    async def run(self) -> None:
        """From the first turn to the last, and until every round has ended. Raises `Violation`."""
        for device in range(DEVICES):
            self._renew(device)
        await asyncio.gather(self._committee(), self._authority(), *map(self._live, range(DEVICES)))
        self._attendance.check_all(range(DEVICES))
        for device in range(DEVICES):
            for update in await asyncio.create_task(self._check_spool(device)):
                self._counts[f"updates {update.state} {update.problem}".rstrip()] += 1
        for missed, often in self._attendance.returns.items():
            self._counts[f"back, and took part after {missed} rounds"] = often

    # -- the server and its key holders, and the authority --------------------------------------------

    async def _committee(self) -> None:
        world, observer = self._world, self._observer
        while self._living or observer.rounds("open", "closed", "opening"):
            await asyncio.sleep(LOOK)
            before = None
            while observer.rounds("open", "closed", "opening") and (now := observer.progress()) != before:
                before = now
                await world.run(world.work(0), UNTOUCHED, "work")
                if observer.rounds("closed", "opening"):
                    await world.run(world.answers(HOLDERS), UNTOUCHED, "answers")
            if before is not None:
                self._look()
                observer.check()

    def _look(self) -> None:
        """At the rounds that were published since the last look."""
        for device in range(DEVICES):
            self._settle(device)
        rows = self._world.seen(
            "SELECT id, number, opened_at, excluded, dropped, version FROM rounds"
            " WHERE state = 'published' AND version > ? ORDER BY version", self._published
        )  # fmt: skip
        for round_id, number, opened, excluded, dropped, version in rows:
            updates = self._world.seen("SELECT update_id, client, received FROM updates WHERE round_id = ?", round_id)
            out = {one["update"] for one in json.loads(excluded)}.union(*(b["updates"] for b in json.loads(dropped)))
            summed = {int(client.split("-")[1]): received for update, client, received in updates if update not in out}
            self._published = version
            self._attendance.published(number, opened, summed)

    async def _authority(self) -> None:
        world = self._world
        while self._living:
            for device in range(DEVICES):
                if device not in self._asleep and self._now >= self._renew_at[device]:
                    self._renew(device)
                    self._counts["credentials renewed"] += 1
            if world.clock() >= self._listed + VALID:
                await world.run(self._publish_list(), UNTOUCHED, "list")
            await asyncio.sleep(VISIT)

    def _renew(self, device: int) -> None:
        """Another credential for the key that a device has."""
        self._settle(device)  # it may have run out of the one before
        world, dice = self._world, self._dice[device]
        identity, now = world.identities[device], world.clock()
        request = enroll_request(identity.name, "client", identity.key, now=now)
        key, days = world.cast.authority.key, VALID / SECONDS_PER_DAY
        credential = issue_credential(key, request, "client", now=now, days=days)
        world.identities[device] = replace(identity, credential=credential)
        expires = self._expiry(device) - START
        due = expires + dice.uniform(*RENEWAL)
        self._renew_at[device] = due if due < self._calm else expires + RENEWAL[0]
        self._settle(device)

    async def _publish_list(self) -> str:
        world = self._world
        self._lists, self._listed = self._lists + 1, world.clock()
        await world.publish_revoked(self._revoked, number=self._lists, until=int(self._listed + 2 * VALID))
        waiting = world.seen(
            "SELECT update_id, credential FROM updates JOIN rounds ON rounds.id = round_id"
            " WHERE state NOT IN ('published', 'failed')"
        )
        world.record.disowned.update(update for update, credential in waiting if _key(credential) in self._revoked)
        return f"list {self._lists}, {len(self._revoked)} keys"

    async def _waiting(self, device: int) -> dict[str, bytes]:
        """What waits in its spool: ids, and the signed heads."""
        async with self._world.device(device) as program:
            return {waiting.update_id: waiting.head for waiting in program.waiting(self._world.task)}

    async def _check_spool(self, device: int) -> list[SpooledUpdate]:
        """After a run of a device that is well, nothing waits but for a round, or for a server that did not answer."""
        async with self._world.device(device) as program:
            updates = program.updates(self._world.task)
        for update in updates:
            if update.state == "waiting" and not (update.problem and PROBLEMS[update.problem].only_this_round):
                raise Violation("what waits is sent", f"client-{device}: {update}")
        return updates

    # -- the devices ----------------------------------------------------------------------------------

    async def _live(self, device: int) -> None:
        dice = self._dice[device]
        for turn in self._turns:
            if turn >= self._now:
                await self._idle(device, turn + dice.uniform(0, JITTER))
                crashed = await self._turn(device)
                await self._meet(device, self._draw(device, CRASHED if crashed else BETWEEN))
        self._living -= 1

    async def _turn(self, device: int) -> bool:
        """One run of the program, and after a crash, until the machine is on again. Whether it crashed."""
        world, dice, name = self._world, self._dice[device], f"client-{device}"
        trouble = self._draw(device, TRAINED)
        kind: FateKind = "none" if self._now >= self._calm else _drawn(dice, HARSH if trouble else FATES)
        fate = Fate(kind, int(dice.uniform(*dice.choice(POINTS))))
        before, right = self._settle(device), not world.devices[device].ahead
        waited = await asyncio.create_task(self._waiting(device))
        outcome = await world.run(self._take_part(device, trouble), fate, f"{name} {trouble}", name)
        self._counts["runs"] += 1
        self._counts[f"run: {outcome.split(' ', 1)[0]}"] += 1
        if not world.devices[device].alive:
            await self._away(device, dice.choice(((0.0, MINUTE), (MINUTE, HOUR))))
            return True
        problem = PROBLEMS.get(outcome)
        well = before is not None and self._settle(device) == before
        if well and problem is not None and not problem.only_this_round:
            raise Violation("who is well is not refused", f"{name}: {outcome}")
        if well:
            await asyncio.create_task(self._check_spool(device))
        if not right:
            if kind == "none" and outcome not in SAID_TO_WRONG_CLOCKS:
                raise Violation("a wrong clock is a clear problem", f"{name}: {outcome}")
            if await asyncio.create_task(self._waiting(device)) != waited:
                raise Violation("a wrong clock changes nothing that waits", f"{name}, {outcome}: {sorted(waited)}")
        return False

    async def _take_part(self, device: int, trouble: Trouble) -> str:
        """What `he-client train --rounds 1` does."""
        outcome = "nothing"
        async with self._world.device(device) as program:
            task = await program.task(NAME)
            self._counts["updates that waited for a run"] += len(program.waiting(task))
            run = partial(self._train, device, trouble)
            async for one in train_rounds(program, task, self._vector, 1, run=run):
                outcome = one.refusal.problem.slug if one.refusal else f"version {one.version}"
        return outcome

    def _vector(self, _model: Any) -> Tensors:
        """A vector that nobody has sent: a training is never the same again."""
        return {"w": one_hot(next(self._vectors), self._length)}

    async def _train(self, device: int, trouble: Trouble, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(self._dice[device].uniform(*TRAINING))
        await self._meet(device, trouble)
        return work()

    async def _meet(self, device: int, trouble: Trouble) -> None:
        world, dice = self._world, self._dice[device]
        match trouble:
            case "sleep":
                self._counts["sleeps"] += 1
                await self._away(device, dice.choice(SLEEPS))
            case "clock":
                self._counts["wrong clocks"] += 1
                world.devices[device].ahead = dice.uniform(*dice.choice(WRONG)) * dice.choice((-1, 1))
                self._right_at[device] = min(self._now + dice.uniform(MINUTE, 2 * HOUR), self._calm)
                self._settle(device)
            case "enrolment":
                self._counts["enrolments anew"] += 1
                self._enrol(device)

    def _enrol(self, device: int) -> None:
        """The same name has another key from now on. The old one is on the next list, which comes soon."""
        world = self._world
        before = world.identities[device]
        self._revoked.add(before.key.public)
        self._listed = min(self._listed, world.clock() - VALID)
        made = world.cast.authority.party(before.name, "client", now=world.clock())
        world.record.secrets.append(made.key.private)
        world.identities[device] = made
        self._attendance.settle(device, world.clock(), well=False)
        self._renew(device)

    async def _away(self, device: int, within: tuple[float, float]) -> None:
        """Off or asleep for as long as that, but not when it is calm."""
        self._asleep.add(device)
        self._settle(device)
        await self._pass(min(self._now + self._dice[device].uniform(*within), self._calm))
        self._asleep.discard(device)
        self._settle(device)

    async def _idle(self, device: int, until: float) -> None:
        """Wait for the timer, and set the clock right when it is time."""
        right_at = self._right_at.get(device, until)
        if right_at < until:
            await self._pass(right_at)
            del self._right_at[device]
            self._world.devices[device].ahead = 0.0
            self._settle(device)
        await self._pass(until)

    async def _pass(self, until: float) -> None:
        await asyncio.sleep(max(0.0, until - self._now))

    def _draw(self, device: int, troubles: dict[Trouble, int]) -> Trouble:
        return "" if self._now >= self._calm else _drawn(self._dice[device], troubles)

    # -- what is known of them ------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        """Seconds since the day began."""
        return self._world.loop.time()

    def _expiry(self, device: int) -> float:
        return float(read_unverified(self._world.identities[device].credential, Credential).exp)

    def _settle(self, device: int) -> float | None:
        """Since when a device has been back, None while it is away: asleep, its clock wrong, or with a credential that
        could expire before a round ends. The key that it has now is never a revoked one."""
        now, machine = self._world.clock(), self._world.devices[device]
        lasts = self._expiry(device) > now + COLLECT + OPENING
        self._attendance.settle(device, now, well=device not in self._asleep and not machine.ahead and lasts)
        return self._attendance.since.get(device)


def _turns(dice: Random, seconds: float) -> list[float]:
    found = [dice.uniform(*TURN)]
    while found[-1] < seconds:
        found.append(found[-1] + dice.uniform(*TURN))
    return found


def _drawn(dice: Random, weights: dict[Any, int]) -> Any:
    return dice.choices(list(weights), list(weights.values()))[0]


def _key(credential: str) -> bytes:
    return public_from_jwk(read_unverified(credential, Credential).cnf.jwk.x)


@insecure_profiles()
def live(seed: int, hours: float = HOURS) -> Record:
    """One day, or so many hours of it. Raises AssertionError where an invariant does not hold."""
    with staged(Schedule(seed, ()), _setting(hours)) as (world, observer):
        day = Day(world, observer, seed, hours)
        world.loop.run_until_complete(_whole(world, observer, day))
    return world.record


async def _whole(world: World, observer: Observer, day: Day) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_task(world.boot())  # in a task of its own: it enters the server's machine
    await day.run()
    await loop.create_task(observer.final())


def _job(job: tuple[int, float]) -> tuple[Counter[str], float, str]:
    """A day of this seed; what happened, its seconds, and why it failed ("": it did not)."""
    (seed, hours), began = job, time.monotonic()
    mute()
    logging.getLogger("he-client").setLevel(logging.ERROR)  # what devices drop is counted
    try:
        counts, failure = live(seed, hours).counts, ""
    except Exception as error:
        counts, failure = Counter[str](), "".join(traceback.format_exception(error))
    return counts, time.monotonic() - began, failure


def main() -> None:
    fix_hashes("tests.simulation.day")
    parser = argparse.ArgumentParser("tests.simulation.day", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="so many days")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--hours", type=float, default=HOURS, help="of virtual time")
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    console, columns, broken = Console(), list[Counter[str]](), 0
    with get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for counts, seconds, failure in pool.imap(_job, [(seed, given.hours) for seed in seeds]):
            broken += bool(failure)
            columns.append(counts + Counter({"seconds that it took": round(seconds)}))
            console.print(failure, markup=False, highlight=False, end="")
    table = Table("what", *map(str, seeds), title=f"{given.seeds} days of {given.hours:g} hours, {broken} failed")
    for what in sorted(set().union(*columns)):
        table.add_row(what, *(f"{counts[what]:,}" for counts in columns))
    console.print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
