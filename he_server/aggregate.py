"""The arithmetic of a round, over blobs: fold what clients sent, and open it with what holders released.

Everything blocks and runs in threads. Ciphertexts are only ever added, modulo their primes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from he_protocol.messages import Share
from he_protocol.problems import WRONG_SIZE, Refusal
from he_protocol.quantise import Floats, Integers
from he_protocol.residues import ResidueLayout, Residues, check, fold, unpack
from he_protocol.schemes import BodyPart
from he_protocol.sharing import Resolution, resolve
from he_protocol.task import Task
from he_server.blobs import Blobs
from he_server.names import model_blob, share_blob, velocity_blob
from he_server.optimiser import mean_update, next_model
from he_server.tensors import read_tensors, read_velocity

BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Released:
    """One holder's verified share and the blob of its vectors."""

    holder: int
    share: Share
    blob: str


def row_blocks(file: BinaryIO, layout: ResidueLayout) -> Iterator[tuple[int, bytes]]:
    """A packed vector in blocks of whole rows, each with the number of its first row."""
    step = max(1, BLOCK_BYTES // layout.row_bytes)
    for first in range(0, layout.rows, step):
        size = min(step, layout.rows - first) * layout.row_bytes
        block = file.read(size)
        if len(block) != size:
            raise Refusal(WRONG_SIZE, "the stored vector is too short", expected=size, got=len(block))
        yield first, block


def check_vector(file: BinaryIO, layout: ResidueLayout) -> None:
    """Raises `residue-out-of-range` when a residue of a packed vector is not below its modulus."""
    for first, block in row_blocks(file, layout):
        check(block, layout, first)


def part_offset(body: Sequence[BodyPart], name: str) -> int:
    """Where a part starts within an update's body, in bytes."""
    names = [part.name for part in body]
    return sum(part.size for part in body[: names.index(name)])


def fold_updates(task: Task, blobs: Blobs, names: Sequence[str], into: str) -> None:
    """Store the sum of all updates' "sum" parts as blob `into`: .npy, uint64, (polynomials, limbs, degree).

    Holds one accumulator and a block in memory, whatever the model's size.
    """
    part = task.part("sum")
    layout = part.layout
    if layout is None:
        raise TypeError(f"scheme {task.config.scheme} declares a sum part without a layout")
    total = np.zeros((layout.rows, layout.degree), dtype=np.uint64)
    offset = part_offset(task.body, part.name)
    for name in names:
        with blobs.open(name) as file:
            file.seek(offset)
            for first, block in row_blocks(file, layout):
                fold(total[first : first + len(block) // layout.row_bytes], block, layout, first)
    with blobs.writer(into) as writer:
        np.save(writer, total.reshape(layout.shape))
        writer.commit()


def choose(task: Task, released: Sequence[Released]) -> tuple[Resolution, list[tuple[Released, int]]]:
    """For every part of the sharing the digest to believe, and whose vector (and which of its) to take.

    Raises `combine-refused`.
    """
    claims: Mapping[int, Mapping[int, bytes]] = {
        item.holder: {entry.part: entry.sha256 for entry in item.share.parts} for item in released
    }
    resolution = resolve(task.sharing, claims)
    sources = []
    for part, digest in enumerate(resolution.digests):
        source = next(item for item in released if claims[item.holder].get(part) == digest)
        sources.append((source, task.sharing.parts_of(source.holder).index(part)))
    return resolution, sources


def load_vectors(task: Task, blobs: Blobs, sources: Sequence[tuple[Released, int]]) -> list[Residues]:
    """One vector for every part, in the order of the parts."""
    layout = task.scheme.share_layout(task.length)
    vectors = []
    for source, position in sources:
        with blobs.open(share_blob(source.blob)) as file:
            file.seek(position * layout.size)
            vectors.append(unpack(file.read(layout.size), layout))
    return vectors


def combine(task: Task, blobs: Blobs, total: str, vectors: Sequence[Residues], count: int) -> Integers:
    """The opened sum of `count` updates, from the blob that `fold_updates` stored. Raises `combine-refused`."""
    with blobs.open(total) as file:
        folded: Residues = np.load(file, allow_pickle=False)
    return task.scheme.combine(folded, vectors, task.length, count, task.epoch_id)


def advance(
    task: Task, blobs: Blobs, base: tuple[int, str], opened: Integers, count: int
) -> tuple[dict[str, Floats], Floats]:
    """The model and velocity after `base` (version, SHA-256). Raises `combine-refused`."""
    version, sha256 = base
    model = read_tensors(blobs.read(model_blob(task.id, sha256)), task.config.tensors)
    velocity = np.zeros(task.parameters, dtype=np.float32)
    if version:
        velocity = read_velocity(blobs.read(velocity_blob(task.id, sha256)))
    return next_model(model, velocity, mean_update(opened, count, task.config), task.config)
