"""The sensor data, split by person. See README.md in this folder for its source and licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

FILE = Path(__file__).with_name("har_i8.npz")
UNSEEN = (5, 10, 15, 20, 25, 30)
"""People held out: nobody trains on their data."""
CLASSES = 6


@dataclass(frozen=True)
class Records:
    """Windows of one or more people: inputs (records, 6 channels, 128 samples), labels (records,)."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices: np.ndarray) -> Records:
        chosen = torch.from_numpy(indices)
        return Records(self.inputs[chosen], self.labels[chosen])


def load() -> tuple[dict[int, Records], Records]:
    """Records of each training person by number, and of all unseen people together."""
    with np.load(FILE) as file:
        values = file["x"].astype(np.float32) / 127 * file["scale"]
        labels, person = file["y"].astype(np.int64), file["u"]
    inputs = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 2, 1)))
    targets = torch.from_numpy(labels)

    def of(mask: np.ndarray) -> Records:
        rows = torch.from_numpy(np.flatnonzero(mask))
        return Records(inputs[rows], targets[rows])

    everybody = sorted(set(person.tolist()))
    clients = {number: of(person == number) for number in everybody if number not in UNSEEN}
    return clients, of(np.isin(person, UNSEEN))
