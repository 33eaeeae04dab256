"""The key-layer sums of one manifest, and the share that is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from he_holder.request import OpeningRequest
from he_holder.rules import revoked_buckets
from he_holder.schemes import ShareMaker
from he_protocol.errors import ProblemError
from he_protocol.messages import FailedBucket, Manifest, Share, ShareVector, UpdateHeader
from he_protocol.problems import DIGEST_MISMATCH, REVOKED_KEY


class BucketSums:
    """The sum of every bucket over the updates that are of use, and which ones are not.

    All of them are in memory: updates come in the manifest's order, which is not that of the buckets.
    """

    def __init__(self, share_maker: ShareMaker, manifest: Manifest) -> None:
        self._listed = {entry.update_id: entry for entry in manifest.updates}
        self._sums = {bucket: share_maker.begin() for bucket in sorted({entry.bucket for entry in manifest.updates})}
        self._added: dict[int, set[bytes]] = {bucket: set() for bucket in self._sums}
        self.unusable: dict[bytes, str] = {}

    def add(self, header: UpdateHeader, body: bytes) -> None:
        """Add one update to its bucket's sum; note it, and leave the sum as it was, if its client signed something
        that no one can use."""
        bucket = self._listed[header.update_id].bucket
        try:
            self._sums[bucket].add(header, body)
        except ProblemError as refusal:
            self.unusable[header.update_id] = refusal.problem.slug
        else:
            self._added[bucket].add(header.update_id)

    def covers(self, manifest: Manifest) -> bool:
        """Whether these are the sums of a manifest's buckets too, less what is of no use: of the very same headers."""
        members: dict[int, set[bytes]] = {entry.bucket: set() for entry in manifest.updates}
        for entry in manifest.updates:
            if entry.update_id not in self.unusable:
                members[entry.bucket].add(entry.update_id)
        return all(self._listed.get(entry.update_id) == entry for entry in manifest.updates) and all(
            self._added[bucket] == ids for bucket, ids in members.items()
        )

    def failed(self, manifest: Manifest) -> dict[int, FailedBucket]:
        """The buckets that hold an update of no use, with the first of each."""
        found: dict[int, FailedBucket] = {}
        for entry in manifest.updates:
            if entry.update_id in self.unusable:
                problem = self.unusable[entry.update_id]
                found.setdefault(entry.bucket, FailedBucket(entry.bucket, entry.update_id, problem))
        return found

    def release(self, manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
        """Subshare and packed vector of everything that this holder knows of one bucket."""
        return self._sums[bucket].release(manifest_hash, bucket)


def check_section(header: UpdateHeader, name: str, body: bytes) -> None:
    """Raises `digest-mismatch` when an update's section is not what its client signed."""
    signed = next(section.sha256 for section in header.sections if section.name == name)
    if hashlib.sha256(body).digest() != signed:
        raise ProblemError(DIGEST_MISMATCH, f"section {name} of update {header.update_id.hex()}", expected=signed.hex())


def make_share(request: OpeningRequest, holder: str, sums: BucketSums) -> tuple[Share, list[bytes]]:
    """The share for a certified manifest, and its vectors. Buckets with a revoked client, or with an update of no
    use, stay closed."""
    manifest = request.manifest
    failed = sums.failed(manifest)
    for bucket, update in revoked_buckets(request).items():
        failed[bucket] = FailedBucket(bucket, update, REVOKED_KEY.slug)
    entries, vectors = [], []
    for bucket in sorted({entry.bucket for entry in manifest.updates} - failed.keys()):
        for subshare, packed in sums.release(request.manifest_hash, bucket):
            entries.append(ShareVector(bucket, subshare, hashlib.sha256(packed).digest()))
            vectors.append(packed)
    share = Share(
        task_hash=manifest.task_hash,
        epoch=manifest.epoch,
        round=manifest.round,
        manifest=request.manifest_hash,
        holder=holder,
        vectors=tuple(entries),
        failed=tuple(failed for _, failed in sorted(failed.items())),
    )
    return share, vectors
