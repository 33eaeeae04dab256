"""Other ways to average updates, measured at the same work: one module each.

Modules of this package run under foreign interpreters too, so all but `hushsum` import nothing but
the standard library, numpy and the peer. The peers' own code is called, never copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Floats = npt.NDArray[Any]
"""A vector of real numbers, shape (d,)."""


@dataclass(frozen=True)
class Work:
    """What every peer has to do: one float32 update, shape (d,), of one of `clients` clients."""

    update: Floats
    clients: int


class Peer(Protocol):
    """A client and a server of one system, in one process, without the network between them.

    Made by its module's `make(work, variant)`.
    """

    @property
    def library(self) -> str:
        """Name and version."""

    @property
    def setting(self) -> str:
        """The parameters that were chosen."""

    @property
    def decrypts(self) -> str:
        """Which parties can read a single client's update, or open the sum."""

    @property
    def signing(self) -> float:
        """Seconds of the last `send` that went into digests and signatures, and not into encrypting."""

    def send(self) -> int:
        """A client's work for one update, from floats to the bytes on the wire. Returns how many those are."""

    def receive(self) -> None:
        """The server's work for the update that was sent last: from its bytes into the running sum."""

    def mean(self) -> Floats:
        """The mean of everything received, opened by the party that can; float64, shape (d,)."""
