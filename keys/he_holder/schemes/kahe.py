"""Scheme `kahe` at a key holder: open this holder's envelope of every update, and add up each subshare.

The work and the bytes of an opening do not depend on the model's size: one uint32[N] vector a subshare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from he_holder.hpke_key import HpkeKey
from he_protocol.arithmetic.residues import pack
from he_protocol.errors import ProblemError
from he_protocol.messages import UpdateHeader
from he_protocol.problems import DIGEST_MISMATCH
from he_protocol.schemes.kahe import (
    NONCE,
    SEED_BYTES,
    Kahe,
    KaheProfile,
    box_bytes,
    envelope_info,
    expand_subshare,
    explicit_subshare,
)
from he_protocol.task import Task


def make_share_maker(task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> KaheShareMaker:
    return KaheShareMaker(task, index, hpke)


def load_kernels(profile: KaheProfile) -> None:
    """Call the one kernel that a release calls."""
    layout = Kahe(profile).share_layout(1)
    pack(layout.zeros(), layout)


class KaheShareMaker:
    """Holds the HPKE key that clients seal their key shares to."""

    def __init__(self, task: Task, index: int, hpke: HpkeKey) -> None:
        self._task = task
        self._index = index
        self._hpke = hpke

    def begin(self) -> KaheKeySum:
        return KaheKeySum(self._task, self._index, self._hpke)


class KaheKeySum:
    """For each subshare that the holder knows, the sum over updates modulo 2^32."""

    def __init__(self, task: Task, index: int, hpke: HpkeKey) -> None:
        scheme = task.scheme
        assert isinstance(scheme, Kahe)
        self._task = task
        self._index = index
        self._hpke = hpke
        self._scheme = scheme
        self._totals = {
            subshare: np.zeros(scheme.profile.degree, dtype=np.uint32) for subshare in task.sharing.subshares_of(index)
        }

    def add(self, header: UpdateHeader, body: bytes) -> None:
        """Add one update's subshares. Raises `digest-mismatch` when its envelope does not open."""
        task, explicit_bytes, size = self._task, self._scheme.explicit_bytes, box_bytes(self._task.sharing)
        name = task.config.committee.holders[self._index].name
        box = body[explicit_bytes + self._index * size :][:size]
        opened = self._hpke.open(box, envelope_info(task.epoch_id, header.client, header.update_id, name))
        terms = {}
        for i, subshare in enumerate(self._totals):
            seed = opened[SEED_BYTES * i :][:SEED_BYTES]
            if subshare == explicit_subshare(task.sharing):
                terms[subshare] = self._explicit(header, seed, body[:explicit_bytes])
            else:
                terms[subshare] = expand_subshare(seed, self._scheme.profile.degree)
        for subshare, term in terms.items():  # only now: a refusal above leaves the sum as it was
            self._totals[subshare] += term

    def release(self, manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
        layout = self._scheme.share_layout(self._task.length)
        for subshare, total in self._totals.items():
            yield subshare, pack(total.astype(np.uint64), layout)

    def _explicit(self, header: UpdateHeader, key: bytes, sealed: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        info = envelope_info(self._task.epoch_id, header.client, header.update_id, "")
        try:
            plain = AESGCM(key).decrypt(NONCE, sealed, info)
        except InvalidTag:
            raise ProblemError(
                DIGEST_MISMATCH, f"the explicit key share of update {header.update_id.hex()} does not open"
            ) from None
        return np.frombuffer(plain, dtype="<u4").astype(np.uint32, copy=False)
