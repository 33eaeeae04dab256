"""The numbers of a committee, and what they are good for (section 2 of the design).

`threshold` holders open a sum. `agreement` holders must have voted for a manifest before an honest one releases a
share of it. Any two sets of `agreement` voters share at least 2 * agreement - holders of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_COMMITTEE


@dataclass(frozen=True)
class Committee:
    """`threshold` of `holders` open, once `agreement` of them have voted.

    >>> Committee(holders=4, threshold=2, agreement=3).colluders
    1
    """

    holders: int
    threshold: int
    agreement: int

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= self.agreement <= self.holders:
            raise ProblemError(
                BAD_COMMITTEE,
                "the committee's numbers do not fit together",
                expected="1 <= threshold <= agreement <= holders",
                got=str(self),
            )
        if self.colluders < 0:
            raise ProblemError(
                BAD_COMMITTEE,
                "two sets of voters need not share a holder",
                expected=f"agreement at least {self.holders // 2 + 1}",
                got=self.agreement,
            )

    def __str__(self) -> str:
        return f"{self.threshold}/{self.holders}/{self.agreement}"

    @property
    def colluders(self) -> int:
        """f: the server together with any f holders reads nothing but opened sums, opens no two sums that overlap,
        and no more sums than the plan says."""
        return min(self.threshold - 1, 2 * self.agreement - self.holders - 1)

    @property
    def away(self) -> int:
        """How many holders may be away while rounds go on."""
        return self.holders - self.agreement

    @property
    def needed_to_exclude(self) -> int:
        """Holders that must say of an update that it is of no use before it is left out: more than may lie, and no
        more than would keep a manifest from its votes."""
        return min(self.colluders, self.away) + 1


def parse_committee(text: str) -> Committee:
    """A committee written as threshold/holders/agreement.

    >>> parse_committee("2/4/3").holders
    4

    Raises `bad-committee`.
    """
    numbers = text.split("/")
    if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) <= 3 for n in numbers):
        raise ProblemError(
            BAD_COMMITTEE, "not a committee", expected="threshold/holders/agreement, as 2/4/3", got=text[:80]
        )
    threshold, holders, agreement = map(int, numbers)
    return Committee(holders, threshold, agreement)


def check_collusion(committee: Committee, allowed: bool) -> None:
    """Raises `bad-committee` where one colluding holder is one too many, unless the task allows that in words."""
    if committee.colluders < 1 and not allowed:
        raise ProblemError(
            BAD_COMMITTEE,
            "the server and a single key holder could break every promise; allow_no_collusion = true accepts that",
            expected="min(threshold - 1, 2 * agreement - holders - 1) at least 1, as in 2/4/3",
            got=f"{committee} (threshold/holders/agreement): {committee.colluders}",
        )


def describe(committee: Committee) -> str:
    """The committee's promise in a sentence, for people."""
    f = committee.colluders
    return (
        f"{committee.threshold} of {committee.holders} key holders open a sum once {committee.agreement} voted for it;"
        f" promises hold while at most {f} of them collude with the server (f = {f});"
        f" rounds go on while at most {committee.away} are away"
    )
