"""Replicated secret sharing: who knows which part of a t-of-n secret.

Section 4 of the design; Ito, Saito, Nishizeki 1987. There is one part for every subset of t-1
holders, and that part is known to every holder *outside* the subset. Any t holders know all
parts; any t-1 holders miss the part named by themselves. A secret is the plain sum of its parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from he_protocol.problems import BAD_COMMITTEE, COMBINE_REFUSED, Refusal

MAX_PARTS = 126
"""C(9, 4): the largest committee whose shares still fit comfortably in one answer."""


@dataclass(frozen=True)
class Sharing:
    """The parts of a `threshold`-of-`holders` committee; holders and parts are numbered from 0.

    >>> Sharing(3, 2).parts_of(0)
    (1, 2)
    """

    holders: int
    threshold: int

    def __post_init__(self) -> None:
        n, t = self.holders, self.threshold
        if not 1 <= t <= n:
            raise Refusal(
                BAD_COMMITTEE, "the threshold must lie between 1 and the number of holders", got=f"{t} of {n}"
            )
        if comb(n, t - 1) > MAX_PARTS:
            raise Refusal(BAD_COMMITTEE, "too many parts", expected=f"at most {MAX_PARTS}", got=comb(n, t - 1))

    @property
    def excluded(self) -> tuple[tuple[int, ...], ...]:
        """For every part, the `threshold - 1` holders that do not know it."""
        return tuple(combinations(range(self.holders), self.threshold - 1))

    @property
    def parts(self) -> int:
        return comb(self.holders, self.threshold - 1)

    def parts_of(self, holder: int) -> tuple[int, ...]:
        """The parts that one holder knows, ascending."""
        return tuple(i for i, out in enumerate(self.excluded) if holder not in out)

    def holders_of(self, part: int) -> tuple[int, ...]:
        """The holders that know one part, ascending."""
        return tuple(h for h in range(self.holders) if h not in self.excluded[part])


@dataclass(frozen=True)
class Resolution:
    """For every part the digest to use; `suspects` are holders not believed."""

    digests: tuple[bytes, ...]
    suspects: frozenset[int]


def resolve(sharing: Sharing, claims: Mapping[int, Mapping[int, bytes]]) -> Resolution:
    """Choose among what holders claim each part to be (holder -> part -> digest).

    Parts are deterministic, so honest holders agree to the byte. A holder that a majority
    contradicts on one part is not believed on any other, nor one that claims a part it cannot know.

    Raises `combine-refused` when a part is missing, or stands one against one.
    """
    suspects = {holder for holder, parts in claims.items() if not set(parts) <= set(sharing.parts_of(holder))}
    while True:
        votes: Sequence[Counter[bytes]] = [
            Counter(parts[i] for holder, parts in claims.items() if holder not in suspects and i in parts)
            for i in range(sharing.parts)
        ]
        found = {
            holder
            for holder, parts in claims.items()
            if holder not in suspects and any(votes[i][digest] * 2 < votes[i].total() for i, digest in parts.items())
        }
        if not found:
            break
        suspects |= found
    chosen = []
    for i, vote in enumerate(votes):
        if not vote:
            raise Refusal(COMBINE_REFUSED, f"no trusted key holder released part {i}")
        if len(vote) > 1:
            raise Refusal(COMBINE_REFUSED, f"key holders contradict each other on part {i} and no majority knows it")
        chosen.append(next(iter(vote)))
    return Resolution(tuple(chosen), frozenset(suspects))
