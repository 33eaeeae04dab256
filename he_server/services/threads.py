"""The bounded pool of threads: whatever blocks or computes runs there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from he_server.services.group_commit import ThreadBatcher

THREADS = 4

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """`signatures` and `bodies` batch these checks, `unproved` those of strangers; none waits for another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "hushsum")
        self.signatures, self.bodies, self.unproved = (ThreadBatcher(self.run) for _ in range(3))

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def shutdown(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
