"""Replicated secret sharing: who knows which subshare of a t-of-n secret.

Section 4 of the design; Ito, Saito, Nishizeki 1987. There is one subshare for every subset of t-1
holders, and that subshare is known to every holder *outside* the subset. Any t holders know all
subshares; any t-1 holders miss the subshare named by themselves. A secret is the plain sum of its subshares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_COMMITTEE

MAX_SUBSHARES = 126
"""C(9, 4): the largest committee whose shares still fit comfortably in one answer."""


@dataclass(frozen=True)
class Sharing:
    """The subshares of a `threshold`-of-`holders` committee; holders and subshares are numbered from 0.

    >>> Sharing(3, 2).subshares_of(0)
    (1, 2)
    """

    holders: int
    threshold: int

    def __post_init__(self) -> None:
        n, t = self.holders, self.threshold
        if not 1 <= t <= n:
            raise ProblemError(
                BAD_COMMITTEE, "the threshold must lie between 1 and the number of holders", got=f"{t} of {n}"
            )
        if comb(n, t - 1) > MAX_SUBSHARES:
            raise ProblemError(
                BAD_COMMITTEE, "too many subshares", expected=f"at most {MAX_SUBSHARES}", got=comb(n, t - 1)
            )

    @property
    def excluded(self) -> tuple[tuple[int, ...], ...]:
        """For every subshare, the `threshold - 1` holders that do not know it."""
        return tuple(combinations(range(self.holders), self.threshold - 1))

    @property
    def subshares(self) -> int:
        return comb(self.holders, self.threshold - 1)

    def subshares_of(self, holder: int) -> tuple[int, ...]:
        """The subshares that one holder knows, ascending."""
        return tuple(i for i, out in enumerate(self.excluded) if holder not in out)

    def holders_of(self, subshare: int) -> tuple[int, ...]:
        """The holders that know one subshare, ascending."""
        return tuple(h for h in range(self.holders) if h not in self.excluded[subshare])


@dataclass(frozen=True)
class Resolution:
    """For every subshare the digest to use. `support`: the holders that say just this; `suspects`: the others."""

    digests: tuple[bytes, ...]
    support: frozenset[int]
    suspects: frozenset[int]

    def certain(self, sharing: Sharing) -> bool:
        """Whether `threshold` of its supporters are honest, so that it is what honest holders say, of every subshare.

        That is so with `2 * threshold - 1` supporters, if at most `threshold - 1` holders lie: all that privacy allows.
        """
        return len(self.support) >= 2 * sharing.threshold - 1


def choices(sharing: Sharing, claims: Mapping[int, Mapping[int, bytes]]) -> list[Resolution]:
    """All that can be made of what holders claim their subshares to be (holder -> subshare -> digest), best supported
    first.

    Subshares are deterministic, so honest holders agree to the byte, and any `threshold` of them know all subshares:
    where so many answered, what they say is among the choices. A choice is what some `threshold` holders agree on;
    there are at most C(n, t), 126. A holder that claims other subshares than its own is in none, and a suspect in all
    of them; one that claims nothing is neither.
    """
    heard = {
        holder: subshares for holder, subshares in claims.items() if set(subshares) == set(sharing.subshares_of(holder))
    }
    answered = frozenset(holder for holder, subshares in claims.items() if subshares)
    found: dict[tuple[bytes, ...], Resolution] = {}
    for group in combinations(sorted(heard), sharing.threshold):
        said = {subshare: digest for holder in group for subshare, digest in heard[holder].items()}
        digests = tuple(said[subshare] for subshare in range(sharing.subshares))
        support = frozenset(holder for holder, subshares in heard.items() if subshares.items() <= said.items())
        if support.issuperset(group):
            found[digests] = Resolution(digests, support, answered - support)
    return sorted(found.values(), key=lambda choice: len(choice.support), reverse=True)
