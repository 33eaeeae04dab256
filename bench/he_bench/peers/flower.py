"""Flower's SecAgg+: pairwise masks from seeds that neighbours agree on, secret shares against dropouts.

All four stages of one client are done with Flower's own functions. The variant is the number of
neighbours; more of them tolerate more colluding clients, and each costs a mask as long as the model.
"""

from __future__ import annotations

import os
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes, public_key_to_bytes

from he_bench.peers import Floats, Work

CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE = 8.0, 1 << 22, 1 << 32
"""The workflow's defaults."""
OWN_ID = 0
Arrays = list[npt.NDArray[np.int64]]


class Flower:
    """One client and its neighbours' keys; the neighbours' own masks cancel ours, so none of theirs is made."""

    signing = 0.0

    library = f"Flower {version('flwr')}"
    decrypts = "the server, once clients hand it their mask shares"

    def __init__(self, work: Work, neighbours: int) -> None:
        self._threshold = max(2, (neighbours + 1) // 2)
        self.setting = f"SecAgg+, {neighbours} neighbours, threshold {self._threshold}, 22-bit values modulo 2^32"
        self._update = work.update
        self._neighbours = {number: generate_key_pairs() for number in range(1, neighbours + 1)}
        self._message: list[bytes] = []
        self._masks: list[bytes] = []
        self._sum: Arrays | None = None
        self._count = 0

    def send(self) -> int:
        (sk1, pk1), (sk2, pk2) = generate_key_pairs(), generate_key_pairs()
        seed = os.urandom(32)
        boxes = self._share(seed, private_key_to_bytes(sk1), sk2)
        values = quantize([self._update], CLIPPING_RANGE, TARGET_RANGE)
        shapes = [value.shape for value in values]
        values = parameters_addition(values, pseudo_rand_gen(seed, MOD_RANGE, shapes))
        pairwise = [generate_shared_key(sk1, public) for _, public in self._neighbours.values()]
        for key in pairwise:  # our number is below every neighbour's: its mask is subtracted
            values = parameters_subtraction(values, pseudo_rand_gen(key, MOD_RANGE, shapes))
        self._message = [ndarray_to_bytes(value) for value in parameters_mod(values, MOD_RANGE)]
        self._masks = [seed, *pairwise]
        shares = self._receive_shares(boxes, sk2)
        keys = [public_key_to_bytes(pk1), public_key_to_bytes(pk2)]
        return sum(len(data) for data in (*keys, *boxes, *self._message, *shares))

    def receive(self) -> None:
        values = [bytes_to_ndarray(data) for data in self._message]
        self._sum = parameters_mod(values if self._sum is None else parameters_addition(self._sum, values), MOD_RANGE)
        self._count += 1

    def mean(self) -> Floats:
        """Opened as the server does it; the neighbours' half of the masks is taken from their shared keys."""
        assert self._sum is not None
        seed, *pairwise = self._masks
        shares = create_shares(seed, self._threshold, len(self._neighbours) + 1)
        shapes = [value.shape for value in self._sum]
        own = pseudo_rand_gen(combine_shares(shares[: self._threshold]), MOD_RANGE, shapes)
        for key in pairwise:
            own = parameters_subtraction(own, pseudo_rand_gen(key, MOD_RANGE, shapes))
        values = self._sum
        for _ in range(self._count):
            values = parameters_subtraction(values, own)
        (total,) = dequantize(parameters_mod(values, MOD_RANGE), CLIPPING_RANGE, TARGET_RANGE)
        mean: Floats = (total - (self._count - 1) * CLIPPING_RANGE) / self._count
        return mean

    def _share(self, seed: bytes, sk1: bytes, sk2: object) -> list[bytes]:
        """Stage 1: shares of the seed and of the masking key, in a box for every neighbour."""
        number = len(self._neighbours) + 1
        shares = zip(*(create_shares(secret, self._threshold, number) for secret in (seed, sk1)), strict=True)
        next(shares)  # ours
        return [
            encrypt(generate_shared_key(sk2, public), share_keys_plaintext_concat(OWN_ID, other, *pair))
            for (other, (_, public)), pair in zip(self._neighbours.items(), shares, strict=True)
        ]

    def _receive_shares(self, boxes: list[bytes], sk2: object) -> list[bytes]:
        """Stages 2 and 3: open as many boxes from neighbours (here: our own), hand out one share of each."""
        opened = [
            share_keys_plaintext_separate(decrypt(generate_shared_key(sk2, public), box))
            for (_, public), box in zip(self._neighbours.values(), boxes, strict=True)
        ]
        return [seed_share for _, _, seed_share, _ in opened]


def make(work: Work, variant: str) -> Flower:
    return Flower(work, int(variant))
