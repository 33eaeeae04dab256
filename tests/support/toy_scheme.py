"""A scheme that only adds, for tests of schemes outside of the tree: all three halves, and no secrecy.

An update is its integers plus one masking vector for each subshare, modulo q; the masks' seeds travel in the clear.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import numpy as np

from he_client.schemes import Sink, Source
from he_holder.hpke_key import HpkeKey
from he_party.board import Board
from he_protocol.arithmetic.keystream import expand_words
from he_protocol.arithmetic.residues import ResidueLayout, Residues, pack
from he_protocol.errors import ProblemError
from he_protocol.messages import UpdateHeader
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import COMBINE_REFUSED
from he_protocol.schemes.scheme import DecryptBlock, Phase, Profile, ReadBlock, Section
from he_protocol.sharing import Sharing
from he_protocol.task import Task

SEED = 32


@dataclass(frozen=True)
class ToyProfile(Profile):
    degree: int
    modulus: int
    bits: int


PROFILES = {"toy-40": ToyProfile("toy-40", "toy", 64, (1 << 40) - 87, 40)}


@dataclass(frozen=True)
class Toy:
    profile: ToyProfile
    ceremony: tuple[Phase, ...] = ()
    binding: bool = False
    error_std: float = 0.0

    @property
    def capacity(self) -> int:
        return self.profile.modulus // 2

    def garbage_bits(self, largest: float, length: int, count: int) -> float:
        return self.layout(length).polynomials * self.profile.degree * log2(self.profile.modulus / (2 * largest + 1))

    def layout(self, length: int) -> ResidueLayout:
        p = self.profile
        return ResidueLayout(max(1, ceil(length / p.degree)), (p.modulus,), p.degree, p.bits)

    def body(self, length: int, sharing: Sharing) -> tuple[Section, ...]:
        layout = self.layout(length)
        return (Section("b", "sum", layout.size, layout), Section("seeds", "key", SEED * sharing.subshares, None))

    def share_layout(self, length: int) -> ResidueLayout:
        return self.layout(length)

    def check_openings(self, openings: int, max_clients: int, length: int) -> None:
        """Any number will do."""

    def mask(self, seed: bytes, length: int) -> Residues:
        layout = self.layout(length)
        words = expand_words(seed, layout.polynomials * layout.degree)
        return (words % np.uint64(self.profile.modulus)).reshape(layout.shape)

    def decryptor(self, released: Sequence[ReadBlock], length: int, count: int, epoch_id: bytes) -> DecryptBlock:
        q, degree = self.profile.modulus, self.profile.degree

        def decrypt_block(first: int, total: Residues) -> Integers:
            masks = sum(read(first, len(total)).astype(np.int64) for read in released)
            opened = np.asarray(((total.astype(np.int64) - masks) % q + q // 2) % q - q // 2).reshape(-1)
            if np.abs(opened[length - first * degree :]).max(initial=0):
                raise ProblemError(COMBINE_REFUSED, "the padding does not open to nothing")
            return opened[: length - first * degree]

        return decrypt_block


def make(profile: ToyProfile) -> Toy:
    return Toy(profile)


def load_kernels(profile: ToyProfile) -> None:
    """There are none."""


@dataclass(frozen=True)
class ToyEncryptor:
    task: Task

    async def encrypt(self, update_id: bytes, source: Source, write: Sink) -> None:
        toy, layout = scheme_of(self.task), self.task.section("sum").layout
        assert layout is not None
        seeds = [secrets.token_bytes(SEED) for _ in range(self.task.sharing.subshares)]
        values = np.zeros(layout.shape, dtype=np.int64)
        values.reshape(-1)[: self.task.length] = source(0, self.task.length)
        masked = values + sum(toy.mask(seed, self.task.length).astype(np.int64) for seed in seeds)
        write("b", pack((masked % toy.profile.modulus).astype(np.uint64), layout))
        write("seeds", b"".join(seeds))


async def make_encryptor(task: Task, client: str, board: Board, cache: Path) -> ToyEncryptor:
    return ToyEncryptor(task)


class ToyKeySum:
    def __init__(self, task: Task, index: int) -> None:
        self._task = task
        self._totals = {i: scheme_of(task).layout(task.length).zeros() for i in task.sharing.subshares_of(index)}

    def add(self, header: UpdateHeader, body: bytes) -> None:
        toy = scheme_of(self._task)
        for subshare, total in self._totals.items():
            total += toy.mask(body[SEED * subshare :][:SEED], self._task.length)
            total %= np.uint64(toy.profile.modulus)

    def release(self, manifest_hash: bytes, bucket: int) -> Iterator[tuple[int, bytes]]:
        layout = scheme_of(self._task).share_layout(self._task.length)
        for subshare, total in self._totals.items():
            yield subshare, pack(total, layout)


@dataclass(frozen=True)
class ToyShareMaker:
    task: Task
    index: int

    def begin(self) -> ToyKeySum:
        return ToyKeySum(self.task, self.index)


def make_share_maker(task: Task, index: int, hpke: HpkeKey, seeds: Mapping[int, bytes]) -> ToyShareMaker:
    return ToyShareMaker(task, index)


def scheme_of(task: Task) -> Toy:
    scheme = task.scheme
    assert isinstance(scheme, Toy)
    return scheme
