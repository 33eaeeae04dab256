"""A closed round on disk whose buckets open to known integers, without clients or holders."""

from __future__ import annotations

import secrets
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from he_protocol.aggregation.optimiser import Optimiser
from he_protocol.arithmetic.ntt_lanes import LANES, CommonProduct
from he_protocol.arithmetic.residues import ResidueLayout, Residues, pack, unpack
from he_protocol.config import TensorSpec
from he_protocol.messages import Manifest, ManifestEntry, Share, ShareVector
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes import scheme
from he_protocol.schemes.ckks import CkksProfile
from he_protocol.schemes.kahe import common_key
from he_server.blobs.keys import model_blob, optimiser_blob, share_blob, total_blob
from he_server.blobs.local import LocalBlobs
from he_server.blobs.tensor_file import write_tensors
from he_server.blobs.vectors import Released, read_total, stored_type, sum_layout
from he_server.jobs.opening import Checked, check_buckets, write_version
from he_server.rules.records import ModelRecord
from tests.support.parties import NOW, World

SCALE = 512.0


class ClosedRound:
    """Random sums and a random share of one holder that opens them; model and optimiser's state are random too."""

    count = 2
    """Updates of each bucket."""

    def __init__(self, root: Path, specs: tuple[TensorSpec, ...], buckets: int, version: int = 1, **plan: Any) -> None:
        shape = {"scheme": "kahe", "profile": "kahe-30", "threshold": 1, "scale": SCALE, "value_range": 1.0}
        sizes = {"min_clients": self.count, "max_clients": buckets * self.count, "buckets": buckets}
        optimiser = {"optimiser": Optimiser(learning_rate=0.7, momentum=0.9)}
        self._rng = np.random.default_rng(1)
        self.model = {spec.name: np.array(self._rng.standard_normal(spec.shape), np.float32) for spec in specs}
        initial = {} if version else {"initial_model": sha256(write_tensors(self.model)).digest()}
        self.task = World(1, shape | sizes | optimiser | initial | plan, specs).task
        self.blobs = LocalBlobs(root)
        self.blobs.prepare()
        self.buckets = buckets
        self._store_sums()
        updates = [
            ManifestEntry(secrets.token_bytes(16), f"client-{i}", bytes(32), i % buckets)
            for i in range(buckets * self.count)
        ]
        self.manifest = Manifest(self.task.hash, 1, 1, 1, int(NOW), version, tuple(updates))
        self.state = self.task.config.aggregation.optimiser.fresh(self.task.parameters)
        if version:
            self.state = np.abs(self._rng.standard_normal(self.state.shape, dtype=np.float32))
        self.base = ModelRecord(version, 1 if version else None, "")
        self.keep_base()
        if self.task.config.aggregation.weighting == "examples":
            for bucket in range(buckets):
                self.weigh(bucket, 700 + bucket)

    def keep_base(self) -> None:
        """Store model and state as they are now."""
        data = write_tensors(self.model)
        digest = sha256(data).hexdigest()
        self.blobs.put(model_blob(self.task.id, digest), data)
        if self.base.version:
            self.blobs.put(
                optimiser_blob(self.task.id, digest),
                save(dict(zip(self.task.config.aggregation.optimiser.state, self.state, strict=True))),
            )
        self.base = ModelRecord(self.base.version, self.base.round_id, digest)

    def forget(self) -> None:
        """Keep nothing of a model's size in memory."""
        self.model.clear()
        self.state = np.zeros((1, 0), dtype=np.float32)

    def weigh(self, bucket: int, weight: int) -> None:
        """Make this the last integer that a bucket opens to (scheme `kahe`)."""
        layout = sum_layout(self.task)
        total = self.total(bucket)
        now = int(opened_whole(self, bucket)[-1])
        flat = total.reshape(-1)
        flat[self.task.length - 1] = (int(flat[self.task.length - 1]) + weight - now) % layout.moduli[0]
        self._put(bucket, total)

    def total(self, bucket: int) -> Residues:
        return read_total(self.task, self.blobs, total_blob(1, bucket), 0, sum_layout(self.task).polynomials)

    def open(self) -> str:
        """The SHA-256 of the next model; every bucket opens, or none."""
        checked = self.check()
        assert not checked.dropped
        return write_version(self.task, self.blobs, 1, checked.kept, self.base).sha256

    def check(self) -> Checked:
        """Which buckets open; the one holder of the committee has answered."""
        checked = check_buckets(self.task, self.blobs, 1, self.manifest, self.released, last=True)
        assert isinstance(checked, Checked)
        return checked

    def models(self) -> list[str]:
        return sorted(self.blobs.names(f"models/{self.task.id}", -1))

    def partials(self) -> list[str]:
        return self.blobs.names("partial", -1)

    def _store_sums(self) -> None:
        layout, shares, profile = sum_layout(self.task), self._shares, self.task.scheme.profile
        moduli = np.array(layout.moduli, dtype=np.uint64)[:, None]
        packed = []
        for bucket in range(self.buckets):
            if isinstance(profile, CkksProfile):  # all slots of polynomial p are p: a constant, times the scale
                released = self._rng.integers(0, moduli, layout.shape, dtype=np.uint64)
                constants = [[(p << profile.scale_bits) % q for q in layout.moduli] for p in range(layout.polynomials)]
                total = (np.array(constants, dtype=np.uint64)[:, :, None] + moduli - released) % moduli
            else:
                released = self._rng.integers(0, 50, shares.shape, dtype=np.uint64)
                total = self._masked(released.reshape(-1).view(np.int64))
            packed.append(pack(released, shares))
            self._put(bucket, total)
        self.blobs.put(share_blob("share"), b"".join(packed))
        vectors = tuple(ShareVector(bucket, 0, sha256(data).digest()) for bucket, data in enumerate(packed))
        self.released = [Released(0, Share(self.task.hash, 1, 1, bytes(32), "holder-0", vectors, ()), "share")]

    def _masked(self, key: Integers) -> Residues:
        """A sum under this key of random integers in range (scheme `kahe`); nothing is added to the padding."""
        layout, length = sum_layout(self.task), self.task.length
        product = CommonProduct(common_key(self.task.epoch_id), key, layout.moduli[0])
        rows = product.groups(0, -(-layout.polynomials // LANES)).reshape(-1)[: prod(layout.shape)].astype(np.uint64)
        largest = int(self.count * SCALE)
        values = self._rng.integers(-largest, largest, length)
        rows[:length] += (values + layout.moduli[0]).view(np.uint64)
        rows[:length] %= np.uint64(layout.moduli[0])
        return rows.reshape(layout.shape)

    def _put(self, bucket: int, total: Residues) -> None:
        self.blobs.put(total_blob(1, bucket), total.astype(stored_type(sum_layout(self.task))).tobytes())

    @property
    def _shares(self) -> ResidueLayout:
        return self.task.scheme.share_layout(self.task.length)

    def vector(self, bucket: int) -> Residues:
        """What the holder released for a bucket."""
        size = self._shares.size
        return unpack(self.blobs.piece(share_blob("share"), bucket * size, size), self._shares)


def opened_whole(closed: ClosedRound, bucket: int) -> Integers:
    """What a bucket opens to, as one vector in memory."""
    task = closed.task
    return scheme.combine(
        task.scheme, closed.total(bucket), [closed.vector(bucket)], task.length, closed.count, task.epoch_id
    )
