"""The schemes under test: the one list that tests of clients and of whole deployments go through."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt
import pytest

SCHEMES: tuple[tuple[str, str], ...] = (("ckks", "ckks-8192"), ("kahe", "kahe-30"))
"""Pairs of scheme and profile."""

MOSTLY_KAHE = [pytest.param(pair, id=pair[0], marks=[pytest.mark.long] * (pair[0] == "ckks")) for pair in SCHEMES]
"""For what hardly depends on the scheme. Threshold CKKS between processes is in tests/integration/test_epochs.py."""

ERROR_STD = {"ckks": 0.0, "kahe": 6.4}
"""Standard deviation of the error that one update leaves in an opened sum, in integer units (sections 5 and 6)."""


def assert_opens_to(
    scheme: str, opened: npt.NDArray[np.int64], vectors: list[npt.NDArray[np.int64]] | tuple[npt.NDArray[np.int64], ...]
) -> None:
    """The opened sum is that of the vectors: to the unit, or within eight deviations of the scheme's own error."""
    bound = 8 * ERROR_STD[scheme] * sqrt(len(vectors))
    worst = int(np.abs(opened - np.sum(vectors, axis=0)).max())
    assert worst <= bound, f"off by {worst}, at most {bound} is right"
