"""How a test says which refusal it expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType


@contextmanager
def expect_problem(problem: ProblemType, match: str = "") -> Iterator[None]:
    """The block must raise a `ProblemError` of exactly this type, with `match` somewhere in its text."""
    try:
        yield
    except ProblemError as refusal:
        if refusal.problem is not problem or match not in str(refusal):
            raise AssertionError(f"expected {problem.slug} ({match!r}), got: {refusal}") from refusal
    else:
        raise AssertionError(f"nothing was refused; expected {problem.slug}")
