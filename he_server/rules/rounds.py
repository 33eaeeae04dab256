"""The rules of rounds: pure functions, no clock, no database (section 9 of the design)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from he_protocol.committee import Committee
from he_protocol.documents import RoundState, Stage
from he_protocol.errors import ProblemError
from he_protocol.problems import WRONG_STATE

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
"""No update waits for a batch longer than this: unfolded updates reduce what may be uploaded."""

AtDeadline: TypeAlias = Literal["close", "fail", "wait"]


def check_transition(before: RoundState, after: RoundState) -> None:
    """Raises `wrong-state` when a round may not go from `before` to `after`."""
    if after not in TRANSITIONS[before]:
        allowed = " or ".join(sorted(TRANSITIONS[before])) or "no other state"
        raise ProblemError(WRONG_STATE, f"a round that is {before} cannot become {after}", expected=allowed, got=after)


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
    long enough, in seconds, or they have `filled` half (0.5) of the backlog limit.
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
