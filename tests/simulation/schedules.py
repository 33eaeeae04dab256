"""What can happen in a schedule, and how one is drawn.

Drawn evenly, not by hypothesis, which likes what it has drawn before: of 500 of its schedules only five held some lie
that every thirtieth should hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from .machine import UNTOUCHED, Fate, FateKind

Kind = Literal[
    "gather",
    "open",
    "contribute",
    "resend",
    "misdirect",
    "work",
    "answer",
    "lie",
    "straggle",
    "spoil",
    "revoke",
    "abandon",
    "restore",
    "wait",
    "sweep",
    "rotate",
    "outage",
    "reboot",
    "thaw",
]
# Often what makes rounds go on, now and then what disturbs them.
_WEIGHTS: dict[Kind, int] = {
    "gather": 6,
    "open": 7,
    "contribute": 4,
    "resend": 2,
    "misdirect": 2,
    "work": 4,
    "answer": 3,
    "lie": 4,
    "straggle": 2,
    "spoil": 2,
    "revoke": 1,
    "abandon": 1,
    "restore": 1,
    "wait": 4,
    "sweep": 3,
    "rotate": 2,
    "outage": 1,
    "reboot": 1,
    "thaw": 2,
}
_FATES: dict[FateKind, int] = {"none": 10, "kill": 3, "power": 3, "freeze": 5, "cut": 2}
_POINTS: dict[Kind, int] = {"gather": 270, "open": 120, "contribute": 50, "work": 70, "answer": 75, "lie": 75}
"""About how many points the longer operations have; the others have at most `_OTHER_POINTS`."""
_OTHER_POINTS = 12
_COMMITS = 8
"""Before or after one of so many, where commits are counted."""
HOLDERS = 4
LONGEST = 8
"""Operations in a schedule."""


@dataclass(frozen=True)
class Operation:
    """`who` and `pick` are taken modulo what there is to choose from."""

    kind: Kind
    who: int = 0
    pick: int = 0
    fate: Fate = UNTOUCHED


@dataclass(frozen=True)
class Schedule:
    """`number`: what all randomness in it comes from. streamed: see `simulated`.

    traitor: the key holder that lies. lean: the server keeps no bytes of updates that it has added up.
    """

    number: int
    operations: tuple[Operation, ...]
    streamed: bool = False
    traitor: int | None = None
    lean: bool = False

    def __str__(self) -> str:
        flags = f"streamed: {self.streamed}, traitor: {self.traitor}, lean: {self.lean}"
        return "\n  ".join([f"schedule {self.number}, {flags}", *map(repr, self.operations)])


def _drawn(random: Random) -> Operation:
    kind = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    fate = random.choices(list(_FATES), list(_FATES.values()))[0]
    who, pick = random.randrange(12), random.randrange(256)
    if fate == "none":
        return Operation(kind, who, pick)
    if fate != "cut" and random.randrange(3) == 0:
        return Operation(kind, who, pick, Fate(fate, random.randrange(2 * _COMMITS), of_commits=True))
    # Often near one of the ends: many operations are shorter than the longest of their kind, and at the end of those
    # is what cannot be taken back.
    where = random.random() ** 2
    at = int((1 - where if random.randrange(2) else where) * _POINTS.get(kind, _OTHER_POINTS))
    return Operation(kind, who, pick, Fate(fate, at))


def draw(random: Random) -> Schedule:
    """A schedule of two to `LONGEST` operations."""
    operations = tuple(_drawn(random) for _ in range(random.randint(2, LONGEST)))
    traitor = random.randrange(HOLDERS) if random.randrange(2) else None
    return Schedule(
        random.randrange(1 << 20), operations, streamed=random.randrange(2) == 0, traitor=traitor,
        lean=random.randrange(4) == 0,
    )  # fmt: skip


def explore(check: Callable[[Schedule], object], examples: int, number: int, *, shrink: bool = True) -> None:
    """Try so many schedules; other ones for every `number`. Raises what the first one that fails raises, or, with
    `shrink`, the simplest one that was found from there."""
    random = Random(number)
    for _ in range(examples):
        schedule = draw(random)
        try:
            check(schedule)
        except Exception as error:
            if shrink:
                _shrink(check, schedule)
            raise error from None


def _shrink(check: Callable[[Schedule], object], schedule: Schedule) -> None:
    """Raises what the simplest schedule raises to which a failing one comes by leaving out one thing after the other,
    as long as it still fails; returns where any of it is needed."""
    for simpler in _simpler(schedule):
        try:
            check(simpler)
        except Exception as error:
            _shrink(check, simpler)
            raise error from None


def _simpler(schedule: Schedule) -> Iterator[Schedule]:
    operations = schedule.operations
    for at in range(len(operations)):
        yield replace(schedule, operations=operations[:at] + operations[at + 1 :])
    for at, operation in enumerate(operations):
        if operation.fate != UNTOUCHED:
            still = replace(operation, fate=UNTOUCHED)
            yield replace(schedule, operations=(*operations[:at], still, *operations[at + 1 :]))
    plain = replace(schedule, streamed=False, traitor=None, lean=False)
    if plain != schedule:
        yield plain
