"""Which records take part in a step of DP-FedSGD."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_client.quantise import Words, secret_words


def poisson_sample(count: int, rate: float, words: Words = secret_words) -> npt.NDArray[np.int64]:
    """Indices of a Poisson sample: each of `count` records independently with probability `rate`.

    The choice must stay secret for subsampling amplification to hold, so it comes from the CSPRNG.
    """
    draws = (words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.flatnonzero(draws < rate)
