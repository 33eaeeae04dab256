"""The rules of rounds: pure functions, no clock, no database (section 9 of the design)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from he_protocol.api import RoundState
from he_protocol.identity import CLOCK_SKEW_SECONDS
from he_protocol.messages import UpdateHeader
from he_protocol.problems import (
    CLOCK_SKEW,
    NOT_ADDRESSED,
    STALE_UPDATE,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_STATE,
    WRONG_TASK,
    Refusal,
)
from he_protocol.task import Task

TRANSITIONS: Mapping[RoundState, frozenset[RoundState]] = {
    "open": frozenset({"closed", "failed"}),
    "closed": frozenset({"opening", "failed"}),
    "opening": frozenset({"published", "failed"}),
    "published": frozenset(),
    "failed": frozenset(),
}
TERMINAL: frozenset[RoundState] = frozenset(state for state, following in TRANSITIONS.items() if not following)

AtDeadline: TypeAlias = Literal["close", "fail", "wait"]
Opening: TypeAlias = Literal["combine", "give-up", "wait"]


def check_transition(before: RoundState, after: RoundState) -> None:
    """Raises `wrong-state` when a round may not go from `before` to `after`."""
    if after not in TRANSITIONS[before]:
        allowed = " or ".join(sorted(TRANSITIONS[before])) or "no other state"
        raise Refusal(WRONG_STATE, f"a round that is {before} cannot become {after}", expected=allowed, got=after)


def at_deadline(updates: int, min_clients: int, deadline: float, now: float) -> AtDeadline:
    """What becomes of an open round; `deadline` is 0 until the first update arrives."""
    if not deadline or now < deadline:
        return "wait"
    return "close" if updates >= min_clients else "fail"


def opening_due(shares: int, tried: int, threshold: int, deadline: float, now: float) -> Opening:
    """What to do with an opening round, after `tried` shares did not combine (0: not tried yet)."""
    if shares >= threshold and shares > tried:
        return "combine"
    return "give-up" if now >= deadline else "wait"


def check_binding(task: Task, task_hash: bytes, epoch: int) -> None:
    """Raises `wrong-task` or `wrong-epoch` when a signed message is not about this task."""
    if task_hash != task.hash:
        raise Refusal(WRONG_TASK, "the message is bound to another task", expected=task.hash.hex(), got=task_hash.hex())
    if epoch != task.config.epoch:
        raise Refusal(WRONG_EPOCH, "the message is bound to another epoch", expected=task.config.epoch, got=epoch)


def check_header(task: Task, header: UpdateHeader, update_id: bytes, now: float) -> None:
    """Everything about an update's header that needs no other update.

    Raises `wrong-task`, `wrong-epoch`, `not-addressed`, `clock-skew` or `wrong-size`.
    """
    check_binding(task, header.task_hash, header.epoch)
    if header.update_id != update_id:
        raise Refusal(
            NOT_ADDRESSED, "the path names another update", expected=update_id.hex(), got=header.update_id.hex()
        )
    if header.created > now + CLOCK_SKEW_SECONDS:
        raise Refusal(CLOCK_SKEW, "check the client's clock", expected=f"at most {int(now)}", got=header.created)
    wanted = [(part.name, part.size) for part in task.body]
    got = [(part.name, part.size) for part in header.parts]
    if got != wanted:
        raise Refusal(
            WRONG_SIZE, "these are not the parts of this profile", expected=wanted, got=got[: len(wanted) + 1]
        )


def check_base_version(base: int, current: int, staleness: int) -> None:
    """Raises `stale-update` unless current - staleness <= base <= current."""
    if not current - staleness <= base <= current:
        raise Refusal(
            STALE_UPDATE,
            "fetch the model again and train on it",
            expected=f"{max(0, current - staleness)} to {current}",
            got=base,
        )
