"""Computers that crash, on a loop without real time, threads or sockets.

Everything that a party does to the world goes through a few seams: work in a thread (database
statements among it), bytes on the wire, and three calls of the file system. Each of them is a
*point* of the activity that reaches it. A `Fate` names a point and what happens there: the machine
is killed, loses power, the activity freezes for a while, or the wire breaks. A crash is a copy of
what survives: the dead machine's code may unwind as it likes, on a disk that nobody reads again.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .disk import Disk

START = 1_700_000_000.0
"""Unix seconds at the beginning of every schedule: earlier than any real file time."""

LOCK_SECONDS = 10
WRITES = 14
"""As many writes on the wire as the longest operation has."""

FateKind = Literal["none", "kill", "power", "freeze", "cut"]


@dataclass(frozen=True)
class Fate:
    """What happens at point number `at` of an activity (for "cut": at its write number `at` on the wire).

    of_commits: what counts are the commits of databases, where what was done before becomes true: number 2k is just
    before commit k, and 2k + 1 at the first point after it.
    """

    kind: FateKind = "none"
    at: int = 0
    of_commits: bool = False

    def __str__(self) -> str:
        return f"{self.kind}@{self.at}{' of commits' if self.of_commits else ''}"


UNTOUCHED = Fate()


class Crashed(BaseException):
    """The machine has stopped: whoever still runs on it runs for nobody."""


class Activity:
    """One operation with everything that it causes, on whichever machine.

    only: the name of the one machine on which its fate may meet it; "" for any.
    """

    def __init__(self, fate: Fate, only: str = "") -> None:
        self.fate = fate
        self.only = only
        self.points = 0
        self.writes = 0
        self.frozen = asyncio.Event()  # set for good: nothing freezes twice
        self._commits = 0
        self._at = -1
        self._crashed = False
        self._waiting: list[Callable[[], object]] | None = None

    def thaw(self) -> bool:
        """Go on after a freeze; whether there was one."""
        waiting, self._waiting = self._waiting, None
        for go in waiting or ():
            go()
        return bool(waiting)

    def breaks(self) -> bool:
        """Count one write; whether the wire breaks under it."""
        self.writes += 1
        return self.fate.kind == "cut" and self.writes == self.fate.at % WRITES + 1

    def point(self, machine: Machine, commits: bool) -> None:
        """Something is about to take effect on a machine."""
        if self.only not in {"", machine.name}:
            return
        self._at = 2 * self._commits - (not commits) if self.fate.of_commits else self.points
        self.points += 1
        self._commits += commits
        if self.fate.kind in {"kill", "power"} and self._at == self.fate.at and not self._crashed:
            self._crashed = True
            machine.crash(power=self.fate.kind == "power")
            raise Crashed

    def when_running(self, now: Callable[[], object], later: Callable[[], object]) -> None:
        """Call `now`; during a freeze rather `later`, when it has ended."""
        if not self.frozen.is_set() and self.fate.kind == "freeze" and self._at >= self.fate.at:
            self._waiting = []
            self.frozen.set()
        if self._waiting is not None:
            self._waiting.append(later)
        else:
            now()


MACHINE: ContextVar[Machine | None] = ContextVar("machine", default=None)
ACTIVITY: ContextVar[Activity | None] = ContextVar("activity", default=None)


@dataclass(eq=False)
class Machine:
    """One boot of one computer. `ahead`: seconds that its clock is before the right time; negative behind it."""

    name: str
    disk: Disk
    alive: bool = True
    crashes: int = 0
    ahead: float = 0.0
    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)  # in order: a set of objects has none
    databases: list[sqlite3.Connection] = field(default_factory=list)
    unplug: list[Callable[[], None]] = field(default_factory=list)

    def crash(self, *, power: bool) -> None:
        """Stop at once. `disk` becomes what the next boot finds."""
        survivor = self.disk.survivor(power=power)
        self.stop()
        self.crashes += 1
        self.disk = survivor

    def stop(self) -> None:
        """No further effect of anything that runs here; nothing is rolled back but by the database itself."""
        self.alive = False
        for database in self.databases:
            database.close()
        for pull in self.unplug:
            pull()
        for task in tuple(self.tasks):
            if task is not asyncio.current_task():
                task.cancel()

    def booted(self) -> Machine:
        """The same computer after a restart."""
        return Machine(self.name, self.disk, crashes=self.crashes, ahead=self.ahead)


def enter(machine: Machine) -> None:
    """From now on the current task runs on this machine, and ends with it."""
    before, task = MACHINE.get(), asyncio.current_task()
    assert task is not None
    if before is not None:
        before.tasks.pop(task, None)
    machine.tasks[task] = None
    MACHINE.set(machine)


def alive() -> None:
    """Raises `Crashed` on a dead machine."""
    machine = MACHINE.get()
    if machine is not None and not machine.alive:
        raise Crashed


def point(*, commits: bool = False) -> None:
    """Raises `Crashed` on a dead machine, and where a fate has it. commits: a transaction of a database."""
    alive()
    machine, activity = MACHINE.get(), ACTIVITY.get()
    if machine is not None and activity is not None:
        activity.point(machine, commits)


def clock(loop: VirtualLoop) -> float:
    """Unix seconds, as the machine has them on which this runs."""
    machine = MACHINE.get()
    return START + loop.time() + (machine.ahead if machine is not None else 0.0)


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in which time passes only while everybody waits, and threads are calls."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wake: Callable[[], bool] = lambda: False
        """Called when everybody waits for somebody: whether that was changed."""
        self._selector = self
        self.set_task_factory(_owned)

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            if not self.wake():
                raise RuntimeError("nothing will ever happen again: somebody waits for nobody")
        else:
            self.now += timeout
        return ()

    def call_exception_handler(self, context: object) -> None:
        """Dead machines' code complains as it unwinds."""

    def _process_events(self, _events: object) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """The call happens here and now."""
        future: asyncio.Future[Any] = self.create_future()
        self.work(future, lambda: func(*args), point)
        return future

    def work(self, future: asyncio.Future[Any] | None, function: Callable[[], Any], before: Callable[[], None]) -> None:
        """Call `function` now, unless the activity is frozen; a locked database is waited for in virtual time.

        `before` is called first: it may raise, and then nothing happens.
        """
        activity, context = ACTIVITY.get(), copy_context()
        waited = 0

        def run() -> None:
            nonlocal waited
            if future is not None and future.done():
                return
            result: Any = None
            error: BaseException | None = None
            try:
                before()
                result = function()
            except sqlite3.OperationalError as refused:
                waited += 1
                if "locked" in str(refused) and waited <= LOCK_SECONDS:
                    self.call_later(1.0, run, context=context)
                    return
                error = refused
            except BaseException as raised:  # all of it is the waiter's
                error = raised
            if future is None:
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        if activity is None:
            run()
        else:
            activity.when_running(run, lambda: self.call_soon(run, context=context))


def _owned(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **kwargs)
    machine = MACHINE.get()
    if machine is not None:
        machine.tasks[task] = None
        task.add_done_callback(lambda done: machine.tasks.pop(done, None))
    return task


_fsync, _replace, _unlink = os.fsync, os.replace, os.unlink


def fsync(descriptor: int) -> None:
    """`os.fsync` of the simulation: a point, and the only way to make something durable."""
    machine = MACHINE.get()
    if machine is None:
        return _fsync(descriptor)
    point()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    machine.disk.sync(descriptor, clock(loop))
    return None


def replace(source: str | Path, target: str | Path, **kwargs: Any) -> None:
    """`os.replace`, a point."""
    point()
    _replace(source, target, **kwargs)


def unlink(path: str | Path, **kwargs: Any) -> None:
    """`os.unlink`, a point."""
    point()
    _unlink(path, **kwargs)
