"""Encryption under scheme `kahe`: a fresh secret for every update, shared in replicated subshares.

A secret s must never encrypt two vectors: b - b' = (e - e') + (v - v') would show their difference.
So s is drawn inside `encrypt`, lives as long as that call, and cannot be passed in.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from he_client.quantise import Words, secret_words
from he_client.schemes import Sink, Source
from he_party.board import Board
from he_protocol.arithmetic.kernel import kernel
from he_protocol.arithmetic.ntt_lanes import LANES, CommonProduct, Lanes
from he_protocol.arithmetic.residues import Residues, pack_into
from he_protocol.envelope import seal as seal_envelope
from he_protocol.privacy.gaussian import Gaussian
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.kahe import (
    NONCE,
    SEED_BYTES,
    Kahe,
    KaheProfile,
    common_key,
    envelope_info,
    expand_subshare,
    explicit_subshare,
)
from he_protocol.task import Task

Piece = tuple[str, bytes | memoryview]
"""A section's name, and some of its bytes."""
JOB = 1 << 17
"""Coordinates that a thread takes at once: handing one over costs as much as encrypting a thousand."""
KEPT_BYTES = 1 << 23
"""A block of this size is freed once. glibc gives back what is free beyond twice the largest block that it saw freed
(mallopt(3), M_TRIM_THRESHOLD): with jobs' own blocks only, it would take a thousand pages from the system for every
update again."""


async def make_encryptor(task: Task, client: str, board: Board, cache: Path) -> KaheEncryptor:
    """Needs no key from the board: the holders' HPKE keys are in the signed task."""
    return KaheEncryptor(task, client)


def load_kernels(profile: KaheProfile) -> None:
    """Call every kernel that encryption calls, on one group of polynomials that nobody gets."""
    layout, error = Kahe(profile).layout(LANES * profile.degree), Gaussian(profile.error_std, profile.error_tail)
    secret = error.sample(secret_words(error.words(layout.degree)), layout.degree)
    rows = CommonProduct(secret_words(4).tobytes(), secret, profile.modulus).groups(0).reshape(-1)
    _mask(rows, np.zeros(rows.size, dtype=np.int64), np.uint32(profile.modulus))
    pack_into(np.empty(layout.size // 8, dtype="<u8"), rows, layout)


class KaheEncryptor:
    """Encrypts the updates of one client. `threads` share the work; `words` is replaced in tests only."""

    def __init__(self, task: Task, client: str, *, threads: int | None = None, words: Words = secret_words) -> None:
        scheme = task.scheme
        assert isinstance(scheme, Kahe)
        self._layout = scheme.layout(task.length)
        self._task = task
        self._client = client
        self._threads = threads or _cores()
        # Kept from update to update: new threads would take their memory from the system page by page again.
        self._pool = ThreadPoolExecutor(self._threads, "encrypt")
        self._process = os.getpid()
        np.empty(KEPT_BYTES, dtype=np.uint8)
        self._words = words
        self._error = Gaussian(scheme.profile.error_std, scheme.profile.error_tail)

    async def encrypt(self, update_id: bytes, source: Source, write: Sink) -> None:
        await asyncio.to_thread(self._encrypt, update_id, source, write)

    def _encrypt(self, update_id: bytes, source: Source, write: Sink) -> None:
        layout = self._layout
        secret = self._error.sample(self._words(self._error.words(layout.degree)), layout.degree)
        product = CommonProduct(common_key(self._task.epoch_id), secret, layout.moduli[0])
        step = LANES * max(1, JOB // (LANES * layout.degree))

        def packed(first: int) -> Piece:
            """Polynomials from the `first` one on: whole groups of `LANES`, but at the end."""
            count = min(step, layout.polynomials - first)
            return "b", self._packed(product, first, count, source).view(np.uint8).data

        def shares() -> Piece:
            return "shares", self._shares(update_id, secret)

        jobs = [partial(packed, first) for first in range(0, layout.polynomials, step)]
        for name, data in self._in_order([*jobs, shares]):
            write(name, data)

    def _in_order(self, jobs: Iterable[Callable[[], Piece]]) -> Iterator[Piece]:
        """What the jobs make, made by several threads where there are any."""
        if self._threads == 1:
            yield from (job() for job in jobs)
            return
        if self._process != os.getpid():  # a fork leaves its threads behind
            self._pool, self._process = ThreadPoolExecutor(self._threads, "encrypt"), os.getpid()
        under_way: deque[Future[Piece]] = deque()
        for job in jobs:
            if len(under_way) > self._threads:  # bounds memory: a job takes about 2 MB
                yield under_way.popleft().result()
            under_way.append(self._pool.submit(job))
        while under_way:
            yield under_way.popleft().result()

    def _packed(self, product: CommonProduct, first: int, count: int, source: Source) -> Residues:
        """`count` polynomials from the `first` of a group on, packed: a*s + e + v."""
        layout = self._layout
        start, size = first * layout.degree, count * layout.degree
        values = source(start, min(start + size, self._task.length))
        terms = self._error.sample(self._words(self._error.words(size)), size)
        terms[: values.size] += values
        rows = product.groups(first // LANES, -(-count // LANES)).reshape(-1)[:size]
        _mask(rows, terms, np.uint32(layout.moduli[0]))
        packed = np.empty(size * layout.bits // 64, dtype="<u8")
        pack_into(packed, rows, layout)
        return packed

    def _shares(self, update_id: bytes, secret: Integers) -> bytes:
        """The sealed explicit subshare, then one envelope for each holder."""
        task, sharing = self._task, self._task.sharing
        last = explicit_subshare(sharing)
        seeds = [self._words(SEED_BYTES // 8).tobytes() for _ in range(sharing.subshares)]
        explicit = (secret % (1 << 32)).astype(np.uint32)
        for subshare in range(last):
            explicit -= expand_subshare(seeds[subshare], secret.size)

        def info(holder: str) -> bytes:
            return envelope_info(task.epoch_id, self._client, update_id, holder)

        sealed = AESGCM(seeds[last]).encrypt(NONCE, explicit.astype("<u4").tobytes(), info(""))
        boxes = [
            seal_envelope(
                b"".join(seeds[subshare] for subshare in sharing.subshares_of(index)), holder.hpke, info(holder.name)
            )
            for index, holder in enumerate(task.config.committee.holders)
        ]
        return sealed + b"".join(boxes)


@kernel
def _mask(rows: Lanes, values: Integers, q: np.uint32) -> None:
    """rows += values modulo q; |value| < q by the task's plan."""
    for i in range(rows.size):
        rows[i] = _plus(rows[i], values[i], q)


@kernel
def _plus(residue: np.uint32, term: np.int64, q: np.uint32) -> np.uint32:
    """residue + term modulo q, for a residue below q and a term above -q and below q."""
    signed = np.int64(q)
    total = np.uint32(residue + np.uint32(term + signed if term < 0 else term))
    return min(total, np.uint32(total - q))


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
