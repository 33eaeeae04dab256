"""How the tests expect a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType


@contextmanager
def refused(problem: ProblemType, match: str = "") -> Iterator[None]:
    """The block must raise a `ProblemError` of exactly this type, with `match` somewhere in its text."""
    with pytest.raises(ProblemError) as caught:
        yield
    assert caught.value.problem is problem, caught.value
    assert match in str(caught.value)
