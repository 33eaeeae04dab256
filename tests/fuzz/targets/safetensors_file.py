"""Model files as the server and the client read them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from safetensors.numpy import save

from he_party import tensors as party_tensors
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import UNEXPECTED_ANSWER
from he_server.blobs.tensor_file import read_tensors, write_tensors

SPECS = (TensorSpec("w", (2, 2)), TensorSpec("b", (2,)))


def file(header: object, body: bytes = b"") -> bytes:
    """A file with any header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


SEEDS = [
    bytes(save({"w": np.ones((2, 2), np.float32), "b": np.zeros(2, np.float32)})),
    file({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, bytes(2)),
    file({"w": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}),
]


def read(data: bytes) -> None:
    """As a client does, from the file that it was saved to."""
    with NamedTemporaryFile() as saved:
        saved.write(data)
        saved.flush()
        party_tensors.read_tensors(Path(saved.name), UNEXPECTED_ANSWER, "a model")


def run(data: bytes) -> None:
    with suppress(ProblemError):
        read(data)
    with suppress(ProblemError):
        tensors = read_tensors(data, SPECS)
        again = read_tensors(write_tensors(tensors), SPECS)
        assert all(np.array_equal(tensors[name], again[name]) for name in tensors)
