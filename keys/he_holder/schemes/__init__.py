"""A key holder's half of the seam: how each scheme turns updates into shares.

What a distribution declares in the group `hushsum.holder_schemes` by the scheme's name has what a `HolderHalf` has; a
scheme whose committee makes a joint key is a `CeremonyHalf`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from he_holder.hpke_key import HpkeKey
from he_party.kernels import Steps
from he_protocol.arithmetic.residues import ResidueLayout, Residues
from he_protocol.messages import UpdateHeader
from he_protocol.schemes.registry import all_profiles, load_half
from he_protocol.task import Task

GROUP = "hushsum.holder_schemes"


class KeySum(Protocol):
    """The running key-layer sum of one bucket of a manifest, over what clients signed."""

    def add(self, header: UpdateHeader, body: bytes) -> None:
        """Add one update's "key" section; its digest was checked against the signed header.

        Raises a refusal when the client signed something that cannot be used; the sum is then unchanged.
        """

    def release(self, manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
        """For each subshare that this holder knows, ascending: its packed vector.

        Deterministic in the secrets, the updates, the manifest and the bucket's number.
        """


class ShareMaker(Protocol):
    """Opens sums of one task with this holder's secrets."""

    def begin(self) -> KeySum: ...


class Dealer(Protocol):
    """The key-generation half of a scheme with a ceremony."""

    @property
    def layout(self) -> ResidueLayout:
        """Of one packed public-key share, and of the joint key."""

    def public_key_share(self, seed: bytes) -> Residues:
        """The public-key share that follows from a subshare's seed; the same for all who know the seed."""


class HolderHalf(Protocol):
    """A key holder's half of a scheme."""

    def load_kernels(self, profile: Any) -> None:
        """Call every kernel that a release calls, so that it is compiled."""

    def make_share_maker(self, task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> ShareMaker:
        """The share maker of a task for holder number `index`; `seeds` are the ceremony's, by subshare."""


class CeremonyHalf(HolderHalf, Protocol):
    def make_dealer(self, task: Task) -> Dealer: ...


def kernel_steps() -> Steps:
    """What compiles the kernels that a key holder calls, for each profile."""
    for profile in all_profiles():
        half: HolderHalf = load_half(GROUP, profile.scheme)
        yield profile.name, partial(half.load_kernels, profile)


def make_share_maker(task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> ShareMaker:
    """The share maker of a task's scheme; see `HolderHalf`. Raises `wrong-scheme`."""
    half: HolderHalf = load_half(GROUP, task.config.encryption.scheme)
    return half.make_share_maker(task, index, hpke, seeds)


def make_dealer(task: Task) -> Dealer:
    """The dealer of a task's scheme, which has a ceremony. Raises `wrong-scheme`."""
    half: CeremonyHalf = load_half(GROUP, task.config.encryption.scheme)
    return half.make_dealer(task)
