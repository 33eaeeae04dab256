"""SEAL's objects and TenSEAL's protobuf. What is read as a ciphertext is written again to the same bytes."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from he_protocol.errors import ProblemError
from he_protocol.schemes import seal_codec
from tests.support.tenseal_vector import ckks_vector

MODULI, DEGREE, SCALE = (97, 113), 8, 4.0
_RESIDUES = np.arange(32, dtype=np.uint64).reshape(2, 2, DEGREE)
_OBJECT = seal_codec.ciphertext(_RESIDUES, MODULI, SCALE)
SEEDS = [_OBJECT, ckks_vector(4, _OBJECT, SCALE), seal_codec.public_context(_RESIDUES, MODULI, SCALE)]


def run(data: bytes) -> None:
    objects = [data]
    with suppress(ProblemError):
        seal_codec.refuse_private(data)
        objects += seal_codec.read_vector(data)
    for item in objects:
        with suppress(ProblemError):
            mode, payload = seal_codec.unwrap(item)
            polynomials = seal_codec.read_ciphertext(payload, MODULI, DEGREE, SCALE)
            assert item[6:] == seal_codec.ciphertext(polynomials, MODULI, SCALE)[6:]
            assert item[5] == mode
