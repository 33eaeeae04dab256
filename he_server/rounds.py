"""The rules of rounds: pure functions, no clock, no database (section 9 of the design)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from he_protocol.api import RoundState, Stage
from he_protocol.committee import Committee
from he_protocol.identity import CLOCK_SKEW_SECONDS
from he_protocol.messages import UpdateHeader
from he_protocol.problems import (
    CLOCK_SKEW,
    EXPIRED_CREDENTIAL,
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

FOLD_BATCH = 8
"""Updates that an open round gathers before it folds them: few, for the disk's sake, but not one at a time, for
every fold writes a whole accumulator."""
FOLD_SECONDS = 2.0
"""Nothing waits for a batch longer than this: what is not folded counts against the room for new uploads."""

AtDeadline: TypeAlias = Literal["close", "fail", "wait"]


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


def stage_of(state: RoundState, votes: int, agreement: int) -> Stage:
    """What a round with a manifest asks of key holders, given the votes for it."""
    if state == "closed":
        return "screen"
    return "release" if votes >= agreement else "vote"


def enough_shares(committee: Committee, shares: int, whole: int, *, binding: bool, late: bool) -> bool:
    """Whether no further share could change what opens: a bucket that does not open now never will.

    whole: those of the shares that leave no bucket closed. With `colluders` more of them than have to agree, the honest
    are enough, however the others lie: `threshold` have to agree where a wrong share shows by what it opens
    (`binding`), else 2 * threshold - 1. After the time for opening as many shares will do as must vote: whoever is
    still away may be away for ever.
    """
    agreeing = committee.threshold if binding else 2 * committee.threshold - 1
    in_time = shares >= committee.holders or whole >= agreeing + committee.colluders
    return in_time or (late and shares >= committee.agreement)


def combining_due(committee: Committee, shares: int, tried: int, *, late: bool) -> bool:
    """Whether to try to open a round, after `tried` shares did not do (0: not tried yet). Time alone ends nothing."""
    return shares >= committee.threshold and (shares > tried or (late and shares >= committee.agreement))


def fold_due(waiting: Mapping[int, int], state: RoundState, *, waited: float, filled: float) -> int | None:
    """Which bucket to fold next, given how many updates wait in each: the fullest, or None where it is not due.

    A closed round folds whatever there is; an open one gathers a batch first, unless an update has `waited`
    long enough, in seconds, or they have `filled` half (0.5) of the room for what is not folded.
    """
    count = sum(waiting.values())
    if not count or (state == "open" and count < FOLD_BATCH and waited < FOLD_SECONDS and filled < 1 / 2):
        return None
    return max(waiting, key=lambda bucket: waiting[bucket])


def merge_buckets(sizes: Sequence[int], min_clients: int) -> int:
    """The largest number k such that merging bucket b into bucket b % k leaves each with `min_clients` updates.

    `sizes` are the updates of each bucket as they arrived; 1 where no larger number will do.
    """
    for k in range(len(sizes), 1, -1):
        if min(sum(sizes[b::k]) for b in range(k)) >= min_clients:
            return k
    return 1


def check_binding(task: Task, task_hash: bytes, epoch: int) -> None:
    """Raises `wrong-task` or `wrong-epoch` when a signed message is not about this task."""
    if task_hash != task.hash:
        raise Refusal(WRONG_TASK, "the message is bound to another task", expected=task.hash.hex(), got=task_hash.hex())
    if epoch != task.config.epoch:
        raise Refusal(WRONG_EPOCH, "the message is bound to another epoch", expected=task.config.epoch, got=epoch)


def check_header(task: Task, header: UpdateHeader, update_id: bytes, now: float) -> None:
    """Everything about an update's header that needs no other update.

    Raises `wrong-task`, `wrong-epoch`, `not-addressed`, `clock-skew`, `stale-update` or `wrong-size`.
    """
    check_binding(task, header.task_hash, header.epoch)
    if header.update_id != update_id:
        raise Refusal(
            NOT_ADDRESSED, "the path names another update", expected=update_id.hex(), got=header.update_id.hex()
        )
    if header.created > now + CLOCK_SKEW_SECONDS:
        raise Refusal(CLOCK_SKEW, "check the client's clock", expected=f"at most {int(now)}", got=header.created)
    if header.created < (oldest := int(now) - task.config.update_lifetime):
        raise Refusal(STALE_UPDATE, "the update is too old", expected=f"created after {oldest}", got=header.created)
    wanted = [(part.name, part.size) for part in task.body]
    got = [(part.name, part.size) for part in header.parts]
    if got != wanted:
        raise Refusal(
            WRONG_SIZE, "these are not the parts of this profile", expected=wanted, got=got[: len(wanted) + 1]
        )


def check_lasting(task: Task, expires: int, now: float) -> None:
    """Raises `expired-credential` when an update's credential could expire before key holders see it: they refuse
    the whole manifest then, and one client could fail round after round."""
    until = int(now) + task.config.collect_seconds + task.config.opening_seconds
    if expires <= until:
        raise Refusal(
            EXPIRED_CREDENTIAL, "renew it: the round may outlast it", expected=f"valid after {until}", got=expires
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
