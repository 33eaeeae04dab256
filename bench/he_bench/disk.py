"""Peak size of a directory's files, sampled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02


@dataclass
class PeakDisk:
    """The most bytes that a directory's files had together."""

    peak: int = 0

    def look(self, directory: Path) -> None:
        """Take one sample. Blocks."""
        self.peak = max(self.peak, sum(_sizes(directory)))


@asynccontextmanager
async def peak_disk(directory: Path) -> AsyncIterator[PeakDisk]:
    """Around what fills a directory: sampled from its start to its end."""
    watch = PeakDisk()

    async def sample() -> None:
        while True:
            await asyncio.to_thread(watch.look, directory)
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield watch
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling  # whatever else ended it is raised


def _sizes(directory: Path) -> Iterator[int]:
    """Of all files; what disappears meanwhile does not count."""
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                yield Path(folder, name).stat().st_size
            except FileNotFoundError:
                continue
