"""Membership of a task's committee."""

from __future__ import annotations

from dataclasses import dataclass

from he_protocol.config import HolderEntry
from he_protocol.errors import ProblemError
from he_protocol.identity.credentials import Party
from he_protocol.problems import NOT_ADDRESSED, WRONG_ROLE
from he_protocol.task import Task


@dataclass(frozen=True)
class Member:
    """A key holder of a task's committee: its number in the sharing and its entry."""

    index: int
    entry: HolderEntry


def check_member(task: Task, party: Party) -> Member:
    """The committee's entry of a holder. Raises `wrong-role` for a holder of another committee, or with another key."""
    index = task.holder_index(party.name)
    if index is None or task.config.committee.holders[index].key != party.public:
        raise ProblemError(
            WRONG_ROLE, f"{party.name!r} is not in the task's committee with this key", expected="a committee member"
        )
    return Member(index, task.config.committee.holders[index])


def check_self(party: Party, named: str) -> None:
    """Raises `not-addressed` when a holder writes under another name."""
    if named != party.name:
        raise ProblemError(NOT_ADDRESSED, "the path names another holder", expected=party.name, got=named[:64])
