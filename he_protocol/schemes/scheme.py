"""What a scheme is to everybody else: its public half, and how a sum is opened in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol, TypeAlias

import msgspec
import numpy as np

from he_protocol.arithmetic.ntt_lanes import LANES
from he_protocol.arithmetic.residues import ResidueLayout, Residues
from he_protocol.messages import Post
from he_protocol.privacy.quantise import Integers
from he_protocol.sharing import Sharing

BLOCK_RESIDUES = 1 << 17
"""About as many are opened at once, unless one group of polynomials has more: a MiB as uint64."""

ReadBlock: TypeAlias = Callable[[int, int], Residues]
"""(first, count): `count` polynomials of a vector, starting at `first`; shape (count, limbs, degree)."""
DecryptBlock: TypeAlias = Callable[[int, Residues], Integers]
"""The integers behind a block (see `blocks`) of a folded sum, given the number of its first polynomial; cut at
the vector's length. May overwrite the block. Raises `combine-refused` when they cannot be a sum."""


@dataclass(frozen=True)
class Profile:
    """A named set of parameters; the only place where crypto numbers live."""

    name: str
    scheme: str
    insecure_for_tests: bool = field(default=False, kw_only=True)
    """Protects nothing: no party takes a task of it but within `registry.insecure_profiles`."""

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 over every parameter: travels with the task and must agree everywhere."""
        return hashlib.sha256(msgspec.json.encode(asdict(self), order="sorted")).digest()


@dataclass(frozen=True)
class Section:
    """One piece of an update's body.

    role "sum": the server adds it; "key": key holders download it and work on it.
    `layout` is None where the bytes are not residues.
    """

    name: str
    role: Literal["sum", "key"]
    size: int
    layout: ResidueLayout | None


@dataclass(frozen=True)
class Phase:
    """One phase of a key ceremony: a name of up to 16 characters, and what every holder posts in it."""

    name: str
    message: type[Post]


class Scheme(Protocol):
    """The public half of a scheme under one profile."""

    @property
    def profile(self) -> Profile: ...

    @property
    def ceremony(self) -> tuple[Phase, ...]:
        """How the committee makes a joint key before clients can encrypt; empty where it needs none."""

    @property
    def capacity(self) -> int:
        """The largest absolute value that an opened sum may have."""

    @property
    def error_std(self) -> float:
        """Standard deviation of the error, in integer units, that every update adds to an opened sum."""

    @property
    def binding(self) -> bool:
        """Whether no wrong share can be found that opens to a plausible sum."""

    def garbage_bits(self, largest: float, length: int, count: int) -> float:
        """-log2 of the probability that a random wrong share opens to what could be a sum of `count` updates, of
        `length` integers up to ±`largest`."""

    def body(self, length: int, sharing: Sharing) -> tuple[Section, ...]:
        """The sections of an update of `length` integers, in the order in which they travel."""

    def share_layout(self, length: int) -> ResidueLayout:
        """Layout of the vector that holders release for each subshare."""

    def check_openings(self, openings: int, max_clients: int, length: int) -> None:
        """Refuse a number of opened ciphertext sums in one epoch that the scheme cannot bear; every bucket is one."""

    def decryptor(self, released: Sequence[ReadBlock], length: int, count: int, epoch_id: bytes) -> DecryptBlock:
        """What opens the sum of `count` updates of `length` integers, with one released vector for each subshare.

        `epoch_id` is the task's. Raises `combine-refused` when the released vectors alone show that they are wrong.
        """


def blocks(shape: tuple[int, ...], sums: int = 1) -> Iterator[tuple[int, int]]:
    """First polynomial, and number of polynomials, of the blocks in which `sums` sums are opened side by side.

    `shape` is a sum's: (polynomials, limbs, degree). Blocks are whole groups of `LANES` polynomials (but for the
    end): the groups in which `kahe` makes its public polynomials.
    """
    polynomials, limbs, degree = shape
    step = LANES * max(1, BLOCK_RESIDUES // (LANES * limbs * degree * sums))
    for first in range(0, polynomials, step):
        yield first, min(step, polynomials - first)


def combine(
    scheme: Scheme, total: Residues, released: Sequence[Residues], length: int, count: int, epoch_id: bytes
) -> Integers:
    """A whole opened sum in memory, for tests and measurements: `Scheme.decryptor` over whole vectors, in `blocks`.

    `total` is the folded "sum" section, shape (polynomials, limbs, degree), and stays as it is.
    """

    def reader(vector: Residues) -> ReadBlock:
        return lambda first, number: vector[first : first + number]

    decrypt_block = scheme.decryptor([reader(vector) for vector in released], length, count, epoch_id)
    pieces = [decrypt_block(first, total[first : first + number].copy()) for first, number in blocks(total.shape)]
    return np.concatenate(pieces)
