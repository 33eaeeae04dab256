"""What this device's updates can have cost in privacy: written down, durably, before the first byte of one leaves.

A receipt is the server's word, and so is a refusal: an update that left may be opened whatever the server says of
it. So each counts once, from before its first sending, however often it is sent, and whatever becomes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import inf
from pathlib import Path

from he_party.lines import Lines
from he_protocol.errors import ProblemError
from he_protocol.messages import Digest, Message, Name, UpdateId, from_json, to_json
from he_protocol.privacy.accountant import Spent
from he_protocol.privacy.plan import PrivacyPlan, spent_together
from he_protocol.problems import BUDGET_EXHAUSTED
from he_protocol.task import Task


class Entry(Message, frozen=True):
    """One update, a line of the file. `job` is the task's name, which all its epochs share."""

    job: Name
    task: Digest
    update: UpdateId
    plan: PrivacyPlan


class Spending:
    """The file of one device. `max_epsilon` bounds what any job may cost, whatever its plan says."""

    def __init__(self, path: Path, max_epsilon: float = inf) -> None:
        self._lines = Lines(path)
        self._max_epsilon = max_epsilon

    def account(self, task: Task) -> Spent:
        """Of all updates to this job that may have left, in every epoch; by the task's relation and delta."""
        return _cost(_plans(self._lines.read(), task).values(), task.config.privacy)

    def check_next(self, task: Task, waiting: Iterable[str]) -> None:
        """Refuse one more update where all together would cost too much; `waiting` are ids of encrypted ones.

        Raises `budget-exhausted`.
        """
        sent = _plans(self._lines.read(), task)
        for update_id in [*map(bytes.fromhex, waiting), b""]:
            sent.setdefault(update_id, task.config.privacy)
        self._check(task, sent.values())

    def count(self, task: Task, update_id: str) -> None:
        """Write down, unless it is there, that an update is about to leave; it may not after `budget-exhausted`."""
        entry = Entry(task.config.name, task.hash, bytes.fromhex(update_id), task.config.privacy)
        with self._lines.adding() as (before, add):
            sent = _plans(before, task)
            if entry.update in sent:
                return
            self._check(task, [*sent.values(), entry.plan])
            add(to_json(entry))

    def _check(self, task: Task, plans: Iterable[PrivacyPlan]) -> None:
        promise = task.config.privacy
        allowed = min(promise.epsilon_budget, self._max_epsilon)
        cost = _cost(plans, promise)
        if promise.noisy and cost.epsilon > allowed:
            raise ProblemError(
                BUDGET_EXHAUSTED,
                f"one more update to {task.config.name!r} would cost too much, earlier epochs included",
                expected=f"epsilon at most {allowed}",
                got=f"{cost.epsilon:.4f}",
            )


def _cost(plans: Iterable[PrivacyPlan], promise: PrivacyPlan) -> Spent:
    return spent_together(Counter(plans).items(), promise)


def _plans(lines: Iterable[bytes], task: Task) -> dict[bytes, PrivacyPlan]:
    """By update id, of the task's job. Of a line that a crash cut off, nothing was sent."""
    entries = (from_json(line, Entry) for line in lines)
    return {entry.update: entry.plan for entry in entries if entry.job == task.config.name}
