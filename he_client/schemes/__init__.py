"""The client's half of the seam: how each scheme encrypts an update.

One module per scheme, of the same name as in `he_protocol.schemes`, with a `make_encryptor` and a `load_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

from he_client.quantise import load_kernels
from he_party.board import Board
from he_party.kernels import Steps
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.registry import all_profiles
from he_protocol.task import Task

Source = Callable[[int, int], Integers]
"""The integers from one index to another: `UpdateQuantiser.block`, or a slice of a vector that is there already."""
Sink = Callable[[str, bytes | memoryview], None]


class Encryptor(Protocol):
    """Encrypts updates of one task."""

    async def encrypt(self, update_id: bytes, source: Source, write: Sink) -> None:
        """Encrypt the task.length integers of `source`, asked for block by block, under fresh randomness.

        `source` is called from other threads, once for every block, in any order.

        Every section's bytes go to `write(section name, bytes)`, in order within a section.
        """


def kernel_steps() -> Steps:
    """What compiles the kernels that a client calls: for every update, then for each profile."""
    yield "updates", load_kernels
    for profile in all_profiles():
        yield profile.name, partial(import_module(f"{__name__}.{profile.scheme}").load_kernels, profile)


async def make_encryptor(task: Task, client: str, board: Board, cache: Path) -> Encryptor:
    """The encryptor of a task's scheme, for the client of this name; fetches and checks the public keys it needs."""
    module = import_module(f"{__name__}.{task.scheme.profile.scheme}")
    made: Encryptor = await module.make_encryptor(task, client, board, cache)
    return made
