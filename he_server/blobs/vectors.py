"""The arithmetic of a round, over blobs: fold what clients sent, and find what opens it among what holders released.

Everything blocks and runs in threads. Ciphertexts are only ever added, modulo their primes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from he_protocol.arithmetic.residues import ResidueLayout, Residues, check, fold, row_moduli, unpack
from he_protocol.errors import ProblemError
from he_protocol.messages import Share
from he_protocol.problems import WRONG_SIZE
from he_protocol.schemes.scheme import ReadBlock
from he_protocol.sharing import Resolution
from he_protocol.task import Task
from he_server.blobs.keys import share_blob
from he_server.blobs.store import BlobStore

BLOCK_BYTES = 1024 * 1024
Term: TypeAlias = tuple[str, int]
"""An update's "sum" section: a blob, and its number among the sections in that blob."""


@dataclass(frozen=True)
class Released:
    """One holder's verified share and the blob of its vectors."""

    holder: int
    share: Share
    blob: str


def row_blocks(file: BinaryIO, layout: ResidueLayout) -> Iterator[tuple[int, bytes]]:
    """A packed vector in blocks of whole rows, each with the number of its first row."""
    for first, count in _block_rows(layout):
        yield first, _exactly(file, count * layout.row_bytes)


def stored_blocks(file: BinaryIO, layout: ResidueLayout) -> Iterator[tuple[int, Residues]]:
    """A stored sum in the blocks of `row_blocks`: uint64, shape (rows of the block, degree)."""
    kind = stored_type(layout)
    for first, count in _block_rows(layout):
        block = _exactly(file, count * layout.degree * kind.itemsize)
        yield first, np.frombuffer(block, dtype=kind).astype(np.uint64).reshape(count, layout.degree)


def _zero_blocks(layout: ResidueLayout) -> Iterator[tuple[int, Residues]]:
    for first, count in _block_rows(layout):
        yield first, np.zeros((count, layout.degree), dtype=np.uint64)


def _block_rows(layout: ResidueLayout) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // layout.row_bytes)
    for first in range(0, layout.rows, step):
        yield first, min(step, layout.rows - first)


def _exactly(file: BinaryIO, size: int) -> bytes:
    block = file.read(size)
    if len(block) != size:
        raise ProblemError(WRONG_SIZE, "the stored vector is too short", expected=size, got=len(block))
    return block


def check_vector(file: BinaryIO, layout: ResidueLayout) -> None:
    """Raises `residue-out-of-range` when a residue of a packed vector is not below its modulus."""
    for first, block in row_blocks(file, layout):
        check(block, layout, first)


def sum_layout(task: Task) -> ResidueLayout:
    """Layout of the section of an update that the server sums."""
    layout = task.section("sum").layout
    if layout is None:
        raise TypeError(f"scheme {task.config.encryption.scheme} declares a sum section without a layout")
    return layout


def stored_type(layout: ResidueLayout) -> np.dtype[np.unsignedinteger[Any]]:
    """How accumulators and totals are kept: plain little-endian words, uint32 where every residue fits, else uint64.

    So they can be mapped into memory, and need no unpacking; an accumulator takes about an update's space.
    """
    return np.dtype("<u4" if max(layout.moduli) <= 1 << 32 else "<u8")


def load_kernels(layout: ResidueLayout) -> None:
    """Check and add one row of zeros: kernels take a second to load, which no upload should wait for."""
    row = bytes(layout.row_bytes)
    check(row, layout)
    fold(np.zeros((1, layout.degree), dtype=np.uint64), row, layout)


def fold_updates(task: Task, blobs: BlobStore, before: str | None, sections: Sequence[Term], into: str) -> None:
    """Store as `into` the sum of the accumulator `before` (None: zero) and of updates' "sum" sections.

    Block by block: memory holds a block of the sum and one of an update, whatever the model's size.
    Raises FileNotFoundError, `wrong-size` or `residue-out-of-range` for stored bytes that are gone or damaged.
    """
    layout = sum_layout(task)
    with ExitStack() as stack:
        sums = stored_blocks(stack.enter_context(blobs.open(before)), layout) if before else _zero_blocks(layout)
        terms = [
            row_blocks(stack.enter_context(_opened_at(blobs, *section, layout.size)), layout) for section in sections
        ]
        writer = stack.enter_context(blobs.writer())
        for first, total in sums:
            for term in terms:
                fold(total, next(term)[1], layout, first)
            writer.write(total.astype(stored_type(layout)).data)
        writer.commit(into)


def _opened_at(blobs: BlobStore, name: str, position: int, size: int) -> BinaryIO:
    file = blobs.open(name)
    file.seek(position * size)
    return file


def is_intact(task: Task, blobs: BlobStore, name: str, position: int, sha256: bytes) -> bool:
    """Whether an update's "sum" section is still stored as it was signed."""
    layout, hasher = sum_layout(task), hashlib.sha256()
    try:
        with _opened_at(blobs, name, position, layout.size) as file:
            for _, block in row_blocks(file, layout):
                hasher.update(block)
    except (FileNotFoundError, ProblemError):  # gone, or cut short
        return False
    return hasher.digest() == sha256


def merge_sums(task: Task, blobs: BlobStore, names: Sequence[str], into: str, without: Sequence[Term] = ()) -> None:
    """Store as `into` the sum of accumulators, less the updates that are to be taken out of it again.

    Memory and refusals are as for `fold_updates`.
    """
    layout = sum_layout(task)
    with ExitStack() as stack:
        terms = [stored_blocks(stack.enter_context(blobs.open(name)), layout) for name in names]
        out = [row_blocks(stack.enter_context(_opened_at(blobs, *section, layout.size)), layout) for section in without]
        writer = stack.enter_context(blobs.writer())
        for first, total in terms[0]:
            moduli = row_moduli(layout, first, len(total))[:, None]
            for term in terms[1:]:
                np.add(total, next(term)[1], out=total)
                np.minimum(total, total - moduli, out=total)  # wraps to a huge value below the modulus
            for block in out:
                minus = np.zeros_like(total)
                fold(minus, next(block)[1], layout, first)
                np.add(total, moduli - minus, out=total)
                np.minimum(total, total - moduli, out=total)
            writer.write(total.astype(stored_type(layout)).data)
        writer.commit(into)


def read_total(task: Task, blobs: BlobStore, name: str, first: int, count: int) -> Residues:
    """Polynomials of a stored sum, uint64, shape (count, limbs, degree). Raises FileNotFoundError or `wrong-size`."""
    layout = sum_layout(task)
    kind, shape = stored_type(layout), (count, *layout.shape[1:])
    size = prod(layout.shape[1:]) * kind.itemsize
    block = blobs.piece(name, first * size, count * size)
    return np.frombuffer(block, dtype=kind).astype(np.uint64).reshape(shape)


def claims_of(released: Sequence[Released], bucket: int) -> dict[int, dict[int, bytes]]:
    """What every holder says that its subshares of a bucket are: holder -> subshare -> digest.

    Every bucket is judged on its own: what a client did to one says nothing about a holder in the others.
    """
    return {
        item.holder: {entry.subshare: entry.sha256 for entry in item.share.vectors if entry.bucket == bucket}
        for item in released
    }


def share_readers(
    task: Task, blobs: BlobStore, released: Sequence[Released], bucket: int, choice: Resolution
) -> list[ReadBlock]:
    """For every subshare what reads the vector that a choice takes."""
    claims, readers = claims_of(released, bucket), []
    for subshare, digest in enumerate(choice.digests):
        source = next(item for item in released if claims[item.holder].get(subshare) == digest)
        vectors = [(entry.bucket, entry.subshare) for entry in source.share.vectors]
        readers.append(share_reader(task, blobs, source, vectors.index((bucket, subshare))))
    return readers


def share_reader(task: Task, blobs: BlobStore, released: Released, position: int) -> ReadBlock:
    """What reads one vector of a stored share. It raises FileNotFoundError, `wrong-size` or `residue-out-of-range`."""
    layout, name = task.scheme.share_layout(task.length), share_blob(released.blob)
    size = layout.size // layout.polynomials

    def read(first: int, count: int) -> Residues:
        return unpack(blobs.piece(name, position * layout.size + first * size, count * size), layout)

    return read
