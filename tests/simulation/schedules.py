"""What can happen in a schedule, and how hypothesis draws one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

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
# Often what makes rounds go on, now and then what disturbs them. Hypothesis shrinks towards the first.
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
"""One of so many, where commits are counted."""
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


_kinds = st.sampled_from([kind for kind, weight in _WEIGHTS.items() for _ in range(weight)])
_fates = st.sampled_from([kind for kind, weight in _FATES.items() for _ in range(weight)])
_of_commits = st.sampled_from([False, False, True])
_whos, _picks, _wheres = st.integers(0, 11), st.integers(0, 255), st.integers(0, 999)


@st.composite
def _operations(draw: st.DrawFn) -> Operation:
    kind, who, pick, fate = draw(_kinds), draw(_whos), draw(_picks), draw(_fates)
    if fate == "none":
        return Operation(kind, who, pick)
    if fate != "cut" and draw(_of_commits):
        return Operation(kind, who, pick, Fate(fate, draw(_picks) % _COMMITS, of_commits=True))
    # Often near one of the ends: many operations are shorter than the longest of their kind, and at the end of those
    # is what cannot be taken back.
    where = (draw(_wheres) / 1000) ** 2
    at = int((1 - where if draw(st.booleans()) else where) * _POINTS.get(kind, _OTHER_POINTS))
    return Operation(kind, who, pick, Fate(fate, at))


def schedules() -> st.SearchStrategy[Schedule]:
    """Schedules of two to `LONGEST` operations."""
    operations = st.lists(_operations(), min_size=2, max_size=LONGEST).map(tuple)
    traitors = st.none() | st.integers(0, HOLDERS - 1)
    lean = st.sampled_from([False, False, False, True])
    return st.builds(Schedule, st.integers(0, 1 << 20), operations, st.booleans(), traitors, lean)


def explore(check: Callable[[Schedule], object], examples: int, number: int, *, shrink: bool = True) -> None:
    """Have hypothesis try so many schedules; other ones for every `number`. Raises what the simplest failure raises."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)

    @seed(number)
    @settings(
        max_examples=examples,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules())
    def explored(schedule: Schedule) -> None:
        check(schedule)

    explored()
