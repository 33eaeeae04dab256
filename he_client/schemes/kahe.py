"""Sealing under scheme `kahe`: a fresh secret for every update, shared in replicated parts.

A secret s must never encrypt two vectors: b - b' = (e - e') + (v - v') would show their difference.
So s is drawn inside `seal`, lives as long as that call, and cannot be passed in.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from he_client.encode import Words, secret_words
from he_client.schemes import Sink, Source
from he_client.transport import Transport
from he_protocol.envelope import seal as seal_envelope
from he_protocol.gaussian import Gaussian, Samples
from he_protocol.kernel import kernel
from he_protocol.lanes import LANES, CommonProduct
from he_protocol.quantise import Integers
from he_protocol.residues import Residues, pack
from he_protocol.schemes.kahe import (
    NONCE,
    SEED_BYTES,
    Kahe,
    common_key,
    envelope_info,
    expand_part,
    explicit_part,
)
from he_protocol.task import Task

JOB = 1 << 17
"""Coordinates that a thread takes at once: handing one over costs as much as sealing a thousand."""


async def make_sealer(task: Task, transport: Transport, cache: Path) -> KaheSealer:
    """Needs no key from the server: the holders' HPKE keys are in the signed task."""
    return KaheSealer(task, transport.identity.name)


class KaheSealer:
    """Encrypts the updates of one client. `threads` share the work; `words` is replaced in tests only."""

    def __init__(self, task: Task, client: str, *, threads: int | None = None, words: Words = secret_words) -> None:
        scheme = task.scheme
        assert isinstance(scheme, Kahe)
        self._scheme = scheme
        self._task = task
        self._client = client
        self._threads = threads or _cores()
        # Kept from update to update: new threads would take their memory from the system page by page again.
        self._pool = ThreadPoolExecutor(self._threads, "seal")
        self._words = words
        self._error = Gaussian(scheme.profile.error_std, scheme.profile.error_tail)

    async def seal(self, update_id: bytes, source: Source, write: Sink) -> None:
        await asyncio.to_thread(self._seal, update_id, source, write)

    def _seal(self, update_id: bytes, source: Source, write: Sink) -> None:
        profile = self._scheme.profile
        secret = self._draw(profile.degree)
        product = CommonProduct(common_key(self._task.epoch_id), secret, profile.modulus)
        groups = ceil(self._scheme.layout(self._task.length).polynomials / LANES)
        step = max(1, JOB // (LANES * profile.degree))

        def block(first: int) -> bytes:
            return b"".join(self._group(product, n, source) for n in range(first, min(first + step, groups)))

        for packed in self._in_order(block, range(0, groups, step)):
            write("b", packed)
        write("shares", self._shares(update_id, secret))

    def _in_order(self, job: Callable[[int], bytes], starts: range) -> Iterator[bytes]:
        """What `job` makes of every start, made by several threads where there are any."""
        if self._threads == 1:
            yield from map(job, starts)
            return
        under_way: deque[Future[bytes]] = deque()
        for start in starts:
            if len(under_way) > self._threads:  # bounds memory: a job takes about 2 MB
                yield under_way.popleft().result()
            under_way.append(self._pool.submit(job, start))
        while under_way:
            yield under_way.popleft().result()

    def _group(self, product: CommonProduct, number: int, source: Source) -> bytes:
        """Packed rows of up to 16 polynomials: a*s + e + v."""
        degree = self._scheme.profile.degree
        start = number * LANES * degree
        values = source(start, min(start + LANES * degree, self._task.length))
        rows = product.group(number)[: ceil(values.size / degree)]
        _mask(rows.reshape(-1), values, self._draw(rows.size), np.uint64(self._scheme.profile.modulus))
        return pack(rows, self._scheme.layout(rows.size))

    def _draw(self, count: int) -> Samples:
        return self._error.sample(self._words(self._error.words(count)), count)

    def _shares(self, update_id: bytes, secret: Integers) -> bytes:
        """The sealed explicit part, then one envelope for each holder."""
        task, sharing = self._task, self._task.sharing
        last = explicit_part(sharing)
        seeds = [self._words(SEED_BYTES // 8).tobytes() for _ in range(sharing.parts)]
        explicit = (secret % (1 << 32)).astype(np.uint32)
        for part in range(last):
            explicit -= expand_part(seeds[part], secret.size)

        def info(holder: str) -> bytes:
            return envelope_info(task.epoch_id, self._client, update_id, holder)

        sealed = AESGCM(seeds[last]).encrypt(NONCE, explicit.astype("<u4").tobytes(), info(""))
        boxes = [
            seal_envelope(b"".join(seeds[part] for part in sharing.parts_of(index)), holder.hpke, info(holder.name))
            for index, holder in enumerate(task.config.holders)
        ]
        return sealed + b"".join(boxes)


@kernel
def _mask(rows: Residues, values: Integers, errors: Samples, q: np.uint64) -> None:
    """rows += errors + values modulo q; |value + error| is below q by the task's plan."""
    signed = np.int64(q)
    for i in range(rows.size):
        term = errors[i] + (values[i] if i < values.size else 0)
        total = rows[i] + np.uint64(term + signed if term < 0 else term)
        rows[i] = min(total, total - q)


def _cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
