"""The committee's key ceremony, as pure functions over signed messages (section 6 of the design).

1. contribution: for every subshare, each of its holders sends 32 random bytes to the others, by HPKE;
   the subshare's seed is the hash of all contributions.
2. commitment: each holder publishes the digests of the public-key shares that follow from its seeds.
3. reveal: only when all commitments are there, each subshare's first holder publishes its bytes.
4. confirmation: each holder signs the digest of the joint key that it computed itself.

Without phase 2 the last to reveal could choose its subshare so that the joint key is one whose secret
it knows alone (a rogue key).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

from he_holder.hpke_key import HpkeKey
from he_protocol.arithmetic import residues
from he_protocol.arithmetic.keystream import KEY_BYTES, derive_key
from he_protocol.arithmetic.residues import ResidueLayout
from he_protocol.envelope import seal
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import token_hash
from he_protocol.messages import Commitment, Confirmation, Contribution, Reveal, SealedSeeds, SubshareDigest
from he_protocol.problems import CEREMONY_CONFLICT, COMMITMENT_BROKEN, MALFORMED
from he_protocol.sharing import Sharing
from he_protocol.task import Task

Seeds = dict[int, bytes]


def draw_seeds(sharing: Sharing, holder: int) -> Seeds:
    """This holder's random contribution to every subshare that it knows."""
    return {subshare: secrets.token_bytes(KEY_BYTES) for subshare in sharing.subshares_of(holder)}


def contribute(task: Task, holder: int, seeds: Seeds) -> Contribution:
    """Phase 1: seal to each other holder the seeds of the subshares that both know."""
    own = task.config.committee.holders[holder].name
    boxes = []
    for other, entry in enumerate(task.config.committee.holders):
        shared = _common_subshares(task.sharing, holder, other)
        if other != holder and shared:
            plaintext = b"".join(seeds[subshare] for subshare in shared)
            boxes.append(SealedSeeds(entry.name, seal(plaintext, entry.hpke, _info(task, own, entry.name))))
    return Contribution(task.hash, task.config.epoch, own, tuple(boxes))


def subshare_seeds(task: Task, holder: int, own: Seeds, contributions: Sequence[Contribution], key: HpkeKey) -> Seeds:
    """Phase 2: the joint seed of every subshare this holder knows, from all contributions in holder order.

    Raises `ceremony-conflict` when a box for us is missing, `digest-mismatch` when one does not open.
    """
    name = task.config.committee.holders[holder].name
    received: list[Seeds] = []
    for other, contribution in enumerate(contributions):
        if other == holder:
            received.append(own)
            continue
        shared = _common_subshares(task.sharing, holder, other)
        boxes = [box.box for box in contribution.boxes if box.to == name]
        if len(boxes) != bool(shared):
            raise ProblemError(
                CEREMONY_CONFLICT, f"boxes from {contribution.holder!r}", expected=int(bool(shared)), got=len(boxes)
            )
        plaintext = key.open(boxes[0], _info(task, contribution.holder, name)) if boxes else b""
        if len(plaintext) != KEY_BYTES * len(shared):
            raise ProblemError(MALFORMED, "seeds", expected=KEY_BYTES * len(shared), got=len(plaintext))
        received.append({subshare: plaintext[KEY_BYTES * i :][:KEY_BYTES] for i, subshare in enumerate(shared)})
    return {
        subshare: derive_key(
            "hushsum/ceremony/subshare-seed/v1",
            task.hash,
            task.config.epoch.to_bytes(8, "little"),
            subshare.to_bytes(8, "little"),
            *(received[other][subshare] for other in task.sharing.holders_of(subshare)),
        )
        for subshare in task.sharing.subshares_of(holder)
    }


def transcript(contributions: Sequence[str]) -> bytes:
    """SHA-256 over all contributions as signed, in holder order: all must have seen the same."""
    return derive_key("hushsum/ceremony/transcript/v1", *(token_hash(token) for token in contributions))


def commit(task: Task, holder: int, seen: bytes, packed_shares: Mapping[int, bytes]) -> Commitment:
    """Phase 2's message: digests of the packed public-key shares."""
    name = task.config.committee.holders[holder].name
    return Commitment(task.hash, task.config.epoch, name, seen, _digests(packed_shares))


def check_commitments(task: Task, commitments: Sequence[Commitment]) -> dict[int, bytes]:
    """The agreed digest of every subshare, once all holders of it committed to the same one.

    commitments: one of each holder, in holder order. Raises `ceremony-conflict`, naming the holder that differs.
    """
    if len({commitment.transcript for commitment in commitments}) != 1:
        raise ProblemError(CEREMONY_CONFLICT, "the holders saw different contributions")
    agreed: dict[int, bytes] = {}
    for holder, commitment in enumerate(commitments):
        if tuple(entry.subshare for entry in commitment.digests) != task.sharing.subshares_of(holder):
            raise ProblemError(CEREMONY_CONFLICT, f"{commitment.holder!r} committed to subshares that are not its own")
        for entry in commitment.digests:
            if agreed.setdefault(entry.subshare, entry.sha256) != entry.sha256:
                raise ProblemError(
                    CEREMONY_CONFLICT, f"{commitment.holder!r} contradicts others on subshare {entry.subshare}"
                )
    return agreed


def revealed_shares(sharing: Sharing, holder: int) -> tuple[int, ...]:
    """The subshares whose bytes this holder publishes: those that no holder before it knows."""
    return tuple(subshare for subshare in sharing.subshares_of(holder) if sharing.holders_of(subshare)[0] == holder)


def reveal(task: Task, holder: int, seen: bytes, packed_shares: Mapping[int, bytes]) -> tuple[Reveal, bytes]:
    """Phase 3's message and body."""
    mine = {subshare: packed_shares[subshare] for subshare in revealed_shares(task.sharing, holder)}
    name = task.config.committee.holders[holder].name
    return Reveal(task.hash, task.config.epoch, name, seen, _digests(mine)), b"".join(mine.values())


def check_reveals(task: Task, layout: ResidueLayout, bodies: Sequence[bytes], agreed: Mapping[int, bytes]) -> None:
    """Every revealed subshare is the one that was committed to; `bodies` in holder order.

    Raises `malformed` or `commitment-broken`, naming the holder.
    """
    for holder, body in enumerate(bodies):
        subshares = revealed_shares(task.sharing, holder)
        name = task.config.committee.holders[holder].name
        if len(body) != layout.size * len(subshares):
            raise ProblemError(MALFORMED, f"revealed by {name!r}", expected=layout.size * len(subshares), got=len(body))
        for i, subshare in enumerate(subshares):
            if hashlib.sha256(body[layout.size * i :][: layout.size]).digest() != agreed[subshare]:
                raise ProblemError(COMMITMENT_BROKEN, f"subshare {subshare}, revealed by {name!r}")


def joint_key(layout: ResidueLayout, bodies: Sequence[bytes]) -> bytes:
    """The packed joint key: the sum of all revealed subshares, which `check_reveals` must have passed."""
    total = layout.zeros()
    for body in bodies:
        for at in range(0, len(body), layout.size):
            residues.fold(total.reshape(layout.rows, layout.degree), body[at : at + layout.size], layout)
    return residues.pack(total, layout)


def confirm(task: Task, holder: int, seen: bytes, key: bytes) -> Confirmation:
    """Phase 4's message for the packed joint key."""
    name = task.config.committee.holders[holder].name
    return Confirmation(task.hash, task.config.epoch, name, seen, hashlib.sha256(key).digest())


def _digests(packed_shares: Mapping[int, bytes]) -> tuple[SubshareDigest, ...]:
    return tuple(
        SubshareDigest(subshare, hashlib.sha256(data).digest()) for subshare, data in sorted(packed_shares.items())
    )


def _common_subshares(sharing: Sharing, one: int, other: int) -> tuple[int, ...]:
    return tuple(subshare for subshare in sharing.subshares_of(one) if subshare in sharing.subshares_of(other))


def _info(task: Task, sender: str, receiver: str) -> bytes:
    epoch = task.config.epoch.to_bytes(8, "little")
    return derive_key("hushsum/ceremony/box/v1", task.hash, epoch, sender.encode(), receiver.encode())
