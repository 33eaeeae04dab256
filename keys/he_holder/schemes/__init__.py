"""A key holder's half of the seam: how each scheme turns updates into shares.

One module per scheme, of the same name as in `he_protocol.schemes`, with a `make_share_maker` and a `load_kernels`; a
scheme whose committee makes a joint key also has a `make_dealer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Protocol

from he_holder.hpke_key import HpkeKey
from he_party.kernels import Steps
from he_protocol.arithmetic.residues import ResidueLayout, Residues
from he_protocol.messages import UpdateHeader
from he_protocol.schemes.registry import all_profiles
from he_protocol.task import Task


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


def kernel_steps() -> Steps:
    """What compiles the kernels that a key holder calls, for each profile."""
    for profile in all_profiles():
        yield profile.name, partial(import_module(f"{__name__}.{profile.scheme}").load_kernels, profile)


def make_share_maker(task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> ShareMaker:
    """The share maker of a task's scheme for holder number `index`; `seeds` are the ceremony's, by subshare."""
    module = import_module(f"{__name__}.{task.config.encryption.scheme}")
    made: ShareMaker = module.make_share_maker(task, index, hpke, seeds)
    return made


def make_dealer(task: Task) -> Dealer:
    """The dealer of a task's scheme."""
    module = import_module(f"{__name__}.{task.config.encryption.scheme}")
    made: Dealer = module.make_dealer(task)
    return made
