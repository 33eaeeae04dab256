"""A committee in memory opens what clients have encrypted, under every scheme."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_testing.committee import MemoryCommittee
from he_testing.parties import Parties
from he_testing.plans import plan
from tests.support.parties import random_integers
from tests.support.schemes import SCHEMES, assert_opens_to


@pytest.mark.parametrize(("scheme", "profile"), SCHEMES)
async def test_sums_are_those_of_the_integers(tmp_path: Path, scheme: str, profile: str) -> None:
    parties = Parties(4)
    task = parties.sign_task(plan(scheme=scheme, profile=profile), {"w": np.zeros((5, 2), dtype=np.float32)})
    committee = MemoryCommittee(task, parties)
    integers = [random_integers(task.length, seed) for seed in range(3)]
    updates = [await committee.encrypt(f"client-{n}", vector, tmp_path) for n, vector in enumerate(integers)]
    opened = committee.open(updates)
    assert opened.dtype == np.int64
    assert_opens_to(scheme, opened, integers)
