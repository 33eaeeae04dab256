"""The updates that are measured with. Needs numpy only: foreign interpreters use it too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SPREAD = 0.05
"""Standard deviation. A value range of six of them clips nothing."""


def random_update(parameters: int) -> npt.NDArray[np.float32]:
    """Normal values, the same on every call; shape (parameters,)."""
    return np.random.default_rng(1).standard_normal(parameters, dtype=np.float32) * np.float32(SPREAD)
