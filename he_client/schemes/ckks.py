"""Encryption under scheme `ckks`, with TenSEAL.

TenSEAL holds the GIL while it encrypts, so ciphertexts are made in a pool of processes that is
shared by all clients of this process. Each worker keeps the contexts that it has loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from he_client.schemes import Sink, Source
from he_party.board import Board
from he_party.files import private_directory, private_opener
from he_protocol.arithmetic import residues
from he_protocol.errors import ProblemError
from he_protocol.identity.jws import verify
from he_protocol.messages import Confirmation
from he_protocol.privacy.quantise import Integers
from he_protocol.problems import (
    CEREMONY_CONFLICT,
    DIGEST_MISMATCH,
    KEYS_NOT_READY,
    MISSING_PACKAGE,
    PRIVATE_CONTEXT,
    TENSEAL_VERSION,
    WRONG_EPOCH,
    WRONG_TASK,
)
from he_protocol.schemes import seal_codec
from he_protocol.schemes.ckks import Ckks, CkksProfile, common_polynomial
from he_protocol.task import Task

if TYPE_CHECKING:
    import tenseal


async def make_encryptor(task: Task, client: str, board: Board, cache: Path) -> CkksEncryptor:
    """Fetch the committee's joint key, check every holder's confirmation, build a TenSEAL context."""
    scheme = task.scheme
    assert isinstance(scheme, Ckks)
    check_tenseal(scheme.profile)
    digest = check_confirmations(task, await board.posts("confirmation"))
    path = cache / f"{digest.hex()}.context"
    if not path.exists():
        first = task.config.committee.holders[0].name
        key = await board.body("confirmation", first, scheme.key_layout().size)
        context = await asyncio.to_thread(joint_context, task, scheme, digest, key)
        private_directory(path.parent)
        partial = path.with_suffix(f".{os.getpid()}")
        await asyncio.to_thread(_write, partial, context)
        partial.replace(path)
    return CkksEncryptor(scheme.profile, path, task.length)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb", opener=private_opener) as file:
        file.write(data)


def check_confirmations(task: Task, confirmations: dict[str, str]) -> bytes:
    """SHA-256 of the joint key, which every single holder must have confirmed.

    All are asked for, not a quorum: a holder that saw a commitment broken does not confirm.
    Raises `keys-not-ready`, `bad-signature`, `wrong-task`, `wrong-epoch` or `ceremony-conflict`.
    """
    read = []
    for holder in task.config.committee.holders:
        if holder.name not in confirmations:
            raise ProblemError(KEYS_NOT_READY, f"holder {holder.name!r} has not confirmed the joint key yet")
        message = verify(confirmations[holder.name], Confirmation, holder.key)
        if message.task_hash != task.hash:
            raise ProblemError(
                WRONG_TASK, f"the confirmation of {holder.name!r}", expected=task.id, got=message.task_hash.hex()
            )
        if message.epoch != task.config.epoch:
            raise ProblemError(
                WRONG_EPOCH, f"the confirmation of {holder.name!r}", expected=task.config.epoch, got=message.epoch
            )
        read.append((message.key, message.transcript))
    if len(set(read)) != 1:
        raise ProblemError(CEREMONY_CONFLICT, "the holders confirmed different keys")
    return read[0][0]


def joint_context(task: Task, scheme: Ckks, digest: bytes, packed: bytes) -> bytes:
    """A serialised TenSEAL context with the committee's joint public key and no secret key."""
    if hashlib.sha256(packed).digest() != digest:
        raise ProblemError(DIGEST_MISMATCH, "the joint key is not the one that the holders confirmed")
    layout = scheme.key_layout()
    joint = residues.unpack(packed, layout).reshape(layout.shape)
    common = common_polynomial(scheme.profile, task.epoch_id)
    return seal_codec.public_context(np.concatenate([joint, common]), layout.moduli, scheme.profile.scale)


def check_tenseal(profile: CkksProfile) -> None:
    """Refuse any TenSEAL but the pinned one: its bytes do not load across releases. Or `missing-package` for none."""
    try:
        import tenseal
    except ImportError:
        raise ProblemError(
            MISSING_PACKAGE, "scheme ckks encrypts with TenSEAL", expected="pip install 'hushsum[ckks]'"
        ) from None

    if tenseal.__version__ != profile.tenseal:
        raise ProblemError(
            TENSEAL_VERSION, "install the pinned release", expected=profile.tenseal, got=tenseal.__version__
        )


def load_context(data: bytes) -> tenseal.Context:
    """The only way in which this project loads a TenSEAL context: it refuses a secret key inside."""
    import tenseal

    seal_codec.refuse_private(data)
    context = tenseal.context_from(data)
    if context.has_secret_key():
        raise ProblemError(PRIVATE_CONTEXT, "TenSEAL found a secret key in it")
    return context


def load_kernels(profile: CkksProfile) -> None:
    """Call every kernel that reading the committee's key, and packing a ciphertext, call. TenSEAL is not loaded."""
    layout = Ckks(profile).key_layout()
    residues.unpack(bytes(layout.size), layout)
    update = residues.ResidueLayout(1, profile.data_moduli, profile.degree, profile.bits)
    residues.pack(np.frombuffer(update.zeros().tobytes(), dtype="<u8"), update)  # read-only, as TenSEAL's bytes are


class CkksEncryptor:
    """Encrypts vectors of integers, one per slot, into (c0, c1)."""

    def __init__(self, profile: CkksProfile, context: Path, length: int) -> None:
        self._profile = profile
        self._context = context
        self._length = length

    async def encrypt(self, update_id: bytes, source: Source, write: Sink) -> None:
        loop = asyncio.get_running_loop()
        window = WINDOW * self._profile.slots
        for first in range(0, self._length, window):
            work = []
            try:
                for start in range(first, min(first + window, self._length), self._profile.slots):
                    chunk = await asyncio.to_thread(source, start, min(start + self._profile.slots, self._length))
                    work.append(loop.run_in_executor(_pool(), encrypt_slots, self._profile, str(self._context), chunk))
                made = await asyncio.gather(*work)
            except BrokenProcessPool:
                _pool.cache_clear()  # a killed worker takes its pool along, but not the next one
                raise
            for c0, c1 in made:
                write("c0", c0)
                write("c1", c1)


def encrypt_slots(profile: CkksProfile, context: str, chunk: Integers) -> tuple[bytes, bytes]:
    """Packed residues of c0 and c1 for at most N/2 integers. Runs in a worker process."""
    import tenseal
    import zstandard

    slots = np.zeros(profile.slots)
    slots[: len(chunk)] = chunk
    vector = tenseal.ckks_vector(_loaded(context), slots.tolist(), scale=profile.scale)
    (item,) = seal_codec.read_vector(vector.serialize())
    mode, payload = seal_codec.unwrap(item)
    if mode == seal_codec.ZSTD:
        payload = zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    polynomials = seal_codec.read_ciphertext(payload, profile.data_moduli, profile.degree, profile.scale)
    layout = residues.ResidueLayout(1, profile.data_moduli, profile.degree, profile.bits)
    return residues.pack(polynomials[:1], layout), residues.pack(polynomials[1:], layout)


WINDOW = 16
"""Ciphertexts under way at once: bounds memory at about 10 MB."""


@lru_cache(maxsize=4)
def _loaded(path: str) -> tenseal.Context:
    return load_context(Path(path).read_bytes())


@lru_cache(maxsize=1)
def _pool() -> ProcessPoolExecutor:
    # spawn: a fork would copy the threads' locks of torch and numba in an unknown state
    return ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
