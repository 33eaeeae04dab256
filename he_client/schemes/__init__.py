"""The client's half of the seam: how each scheme encrypts an update.

What a distribution declares in the group `hushsum.client_schemes` by the scheme's name has what a `ClientHalf` has.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from he_client.quantise import load_kernels
from he_party.board import Board
from he_party.kernels import Steps
from he_protocol.privacy.quantise import Integers
from he_protocol.schemes.registry import all_profiles, load_half
from he_protocol.task import Task

GROUP = "hushsum.client_schemes"
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


class ClientHalf(Protocol):
    """A client's half of a scheme."""

    def load_kernels(self, profile: Any) -> None:
        """Call every kernel that encryption calls, so that it is compiled."""

    async def make_encryptor(self, task: Task, client: str, board: Board, cache: Path) -> Encryptor:
        """The encryptor of a task, for the client of this name.

        It fetches whatever public keys it needs from the board, checks them, and may keep them at `cache`.
        """


def kernel_steps() -> Steps:
    """What compiles the kernels that a client calls: for every update, then for each profile."""
    yield "updates", load_kernels
    for profile in all_profiles():
        yield profile.name, partial(_half(profile.scheme).load_kernels, profile)


async def make_encryptor(task: Task, client: str, board: Board, cache: Path) -> Encryptor:
    """The encryptor of a task's scheme, for the client of this name.

    Raises `wrong-scheme`, and what `ClientHalf.make_encryptor` raises.
    """
    return await _half(task.config.encryption.scheme).make_encryptor(task, client, board, cache)


def _half(scheme: str) -> ClientHalf:
    half: ClientHalf = load_half(GROUP, scheme)
    return half
