"""What a request's body is made of, and how it is sent: never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

BLOCK_BYTES = 1 << 18
Piece = bytes | memoryview | Path


def size_of(piece: Piece) -> int:
    """Bytes of a piece."""
    return piece.stat().st_size if isinstance(piece, Path) else len(piece)


async def stream(pieces: Sequence[Piece], moved: Callable[[], None]) -> AsyncIterator[bytes]:
    """The pieces in blocks; `moved` is called as each is taken, that is when the one before has been sent."""
    for piece in pieces:
        if isinstance(piece, Path):
            with await asyncio.to_thread(piece.open, "rb") as file:
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    moved()
                    yield block
        else:
            for at in range(0, len(piece), BLOCK_BYTES):
                moved()
                yield bytes(piece[at : at + BLOCK_BYTES])
