"""The rules of single updates: pure functions, no clock, no database."""

from __future__ import annotations

from dataclasses import dataclass

from he_protocol.documents import TaskState
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import CLOCK_SKEW_SECONDS, utc
from he_protocol.messages import UpdateHeader
from he_protocol.problems import (
    CLOCK_SKEW,
    EXPIRED_CREDENTIAL,
    NOT_ADDRESSED,
    STALE_UPDATE,
    TASK_CLOSED,
    TASK_PAUSED,
    WRONG_EPOCH,
    WRONG_SIZE,
    WRONG_TASK,
)
from he_protocol.task import Task


def check_binding(task: Task, task_hash: bytes, epoch: int) -> None:
    """Raises `wrong-task` or `wrong-epoch` when a signed message is not about this task."""
    if task_hash != task.hash:
        raise ProblemError(
            WRONG_TASK, "the message is bound to another task", expected=task.hash.hex(), got=task_hash.hex()
        )
    if epoch != task.config.epoch:
        raise ProblemError(WRONG_EPOCH, "the message is bound to another epoch", expected=task.config.epoch, got=epoch)


def check_header(task: Task, header: UpdateHeader, update_id: bytes, now: float) -> None:
    """Everything about an update's header that needs no other update.

    Raises `wrong-task`, `wrong-epoch`, `not-addressed`, `clock-skew`, `stale-update` or `wrong-size`.
    """
    check_binding(task, header.task_hash, header.epoch)
    if header.update_id != update_id:
        raise ProblemError(
            NOT_ADDRESSED, "the path names another update", expected=update_id.hex(), got=header.update_id.hex()
        )
    if header.created > now + CLOCK_SKEW_SECONDS:
        raise ProblemError(CLOCK_SKEW, "check the client's clock", expected=f"at most {int(now)}", got=header.created)
    if header.created < (oldest := int(now) - task.config.rounds.update_lifetime):
        raise ProblemError(
            STALE_UPDATE, "the update is too old", expected=f"created after {oldest}", got=header.created
        )
    wanted = [(section.name, section.size) for section in task.body]
    got = [(section.name, section.size) for section in header.sections]
    if got != wanted:
        raise ProblemError(
            WRONG_SIZE, "these are not the sections of this profile", expected=wanted, got=got[: len(wanted) + 1]
        )


def check_lasting(task: Task, expires: int, now: float) -> None:
    """Raises `expired-credential` when an update's credential could expire before key holders see it: they refuse
    the whole manifest then, and one client could fail round after round."""
    until = int(now) + task.config.rounds.collect_seconds + task.config.rounds.opening_seconds
    if expires <= until:
        raise ProblemError(
            EXPIRED_CREDENTIAL,
            "renew it: the round may outlast it",
            expected=f"valid after {utc(until)}",
            got=f"until {utc(expires)}",
        )


def check_base_version(base: int, current: int, staleness: int, waiting: int = 0) -> None:
    """Raises `stale-update` unless base is `current`, or older by at most `staleness`.

    waiting: rounds before this one that are closed and not published yet: each makes the model newer by one before this
    one is opened. The newest model is never too old, for there is no other to train on.
    """
    least = min(current, max(0, current + waiting - staleness))
    if not least <= base <= current:
        raise ProblemError(
            STALE_UPDATE, f"fetch version {current} and train on it", expected=f"{least} to {current}", got=base
        )


@dataclass(frozen=True)
class Openings:
    """Of an epoch's opening numbers: `used` is the highest that was given out; `waiting` rounds are closed, and each
    will need one; `undecided` rounds of all are closed and neither published nor failed."""

    used: int
    waiting: int
    undecided: int


def check_taking(task: Task, state: TaskState, openings: Openings) -> None:
    """An update that comes now can still be opened, and is wanted. Raises `task-closed` or `task-paused`."""
    most = task.config.rounds.max_openings
    if state == "closed":
        raise ProblemError(TASK_CLOSED, "the server's operator has closed it")
    if openings.used >= most:
        raise ProblemError(TASK_CLOSED, "every opening of the epoch has been used", expected=f"fewer than {most}")
    if state == "paused":
        raise ProblemError(TASK_PAUSED, "the server's operator has paused it")
    if openings.used + openings.waiting >= most:
        raise ProblemError(TASK_PAUSED, "the epoch's last opening is for a round that waits for its key holders")
