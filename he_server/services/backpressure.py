"""Back-pressure: uploads are put off (429) before memory, or the disk, runs out.

Only uploads of authenticated parties come here. An upload holds one of a fixed number of slots from its first
byte to its answer, and its bytes count until they are folded into a round's running sum. An upload that
finds no free slot waits a little, its body unread and, with "Expect: 100-continue", unsent; then it is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from he_protocol.errors import ProblemError
from he_protocol.problems import OVERLOADED
from he_server.blobs.store import BlobStore
from he_server.rules.admission import Limits, Load, Measured, check_load
from he_server.services.task_cache import TaskCache
from he_server.store.status import StatusStore

REFRESH_SECONDS = 0.2
LOOK_SECONDS = 0.005
"""How often the first waiting upload checks the load."""


async def measure(store: StatusStore, tasks: TaskCache, blobs: BlobStore) -> Measured:
    """Bytes not folded yet, and bytes free for blobs. Raises `database-unavailable`."""
    free = await asyncio.to_thread(blobs.free)
    waiting = await store.unfolded()
    sizes = {task: (await tasks.get(task)).section("sum").size for task in waiting}
    return Measured(sum(count * sizes[task] for task, count in waiting.items()), free)


class AdmissionController:
    """Admits uploads of one process and counts those under way."""

    def __init__(
        self,
        limits: Limits,
        measure: Callable[[], Awaitable[Measured]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._measure = measure
        self._monotonic = monotonic
        self._measuring = asyncio.Lock()
        self._turn = asyncio.Lock()  # fair: the longest waiting comes first
        self._measured = Measured(0, 0)
        self._measured_at = float("-inf")
        self._landed = 0  # bytes of uploads that ended after the last measurement began
        self._uploads = 0
        self._arriving = 0
        self._parties: dict[bytes, tuple[asyncio.Semaphore, int]] = {}  # with how many hold it or wait for it

    async def load(self) -> Load:
        """How busy the server is; what has to be asked for is at most `REFRESH_SECONDS` old.

        Raises `database-unavailable`.
        """
        if self._outdated():
            async with self._measuring:
                if self._outdated():  # another call may have measured meanwhile
                    self._landed = 0
                    self._measured = await self._measure()
                    self._measured_at = self._monotonic()
        return self._load()

    def _outdated(self) -> bool:
        return self._monotonic() - self._measured_at >= REFRESH_SECONDS

    def invalidate(self) -> None:
        """Updates were folded: what is measured next may be less than what was measured last."""
        self._measured_at = float("-inf")

    @asynccontextmanager
    async def admit(self, size: int, party: bytes) -> AsyncIterator[None]:
        """Around all of an upload of `size` bytes by an authenticated party.

        Uploads that do not fit wait, first come first served, for at most `max_wait` seconds. Raises `overloaded` or
        `database-unavailable`.
        """
        async with self._turn_of(party):
            await self._wait_until_admitted(size)
            async with self._under_way(size):
                yield

    @asynccontextmanager
    async def _turn_of(self, party: bytes) -> AsyncIterator[None]:
        """Around an upload: one party cannot take the slots, and the bytes, of all others."""
        slots, count = self._parties.get(party, (asyncio.Semaphore(self._limits.max_uploads_of_party), 0))
        self._parties[party] = slots, count + 1
        entered = False
        try:
            async with asyncio.timeout(self._limits.max_wait):
                await slots.acquire()
            entered = True
            yield
        except TimeoutError:
            if entered:
                raise
            expected = f"at most {self._limits.max_uploads_of_party}"
            raise ProblemError(OVERLOADED, "this party has too many uploads under way", expected=expected) from None
        finally:
            if entered:
                slots.release()
            count = self._parties[party][1]
            self._parties[party] = slots, count - 1
            if count == 1:
                del self._parties[party]

    @asynccontextmanager
    async def _under_way(self, size: int) -> AsyncIterator[None]:
        self._uploads += 1
        self._arriving += size
        try:
            yield
            self._landed += size
        finally:
            self._uploads -= 1
            self._arriving -= size

    async def _wait_until_admitted(self, size: int) -> None:
        busy = self._turn.locked()
        refusal = ProblemError(OVERLOADED, "others wait already") if busy else await self._look(size)
        if refusal is None:
            return
        try:
            async with asyncio.timeout(self._limits.max_wait), self._turn:
                while (found := await self._look(size)) is not None:
                    refusal = found
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise refusal from None

    async def _look(self, size: int) -> ProblemError | None:
        try:
            check_load(await self.load(), size, self._limits)
        except ProblemError as refusal:
            if refusal.problem is not OVERLOADED:
                raise
            return refusal
        return None

    async def check_disk(self, size: int = 0) -> None:
        """Raises `overloaded` when `size` more bytes, beside the uploads under way, would be refused for the disk."""
        load = await self.load()
        check_load(Load(0, 0, 0, load.free - load.arriving), size, self._limits)

    def _load(self) -> Load:
        return Load(self._uploads, self._arriving, self._measured.unfolded + self._landed, self._measured.free)
