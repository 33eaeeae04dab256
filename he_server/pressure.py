"""Back-pressure: uploads are put off (429) before memory, or the disk, runs out.

Only parties that have proved who they are come here. An upload holds one of a fixed number of slots from its first
byte to its answer, and its bytes count until they are folded into a round's running sum. What finds no room waits a
little, its body unread and, with "Expect: 100-continue", unsent; then it is refused.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from he_protocol.problems import OVERLOADED, REQUEST_TIMEOUT, Refusal
from he_server.acceptance import TOGETHER_BYTES

REFRESH_SECONDS = 0.2
RETRY_SECONDS = 5
"""The longest Retry-After; each is drawn between 1 and this, so that those who were refused together
do not come back together."""
FEW = 16
"""Large updates that may be under way or wait to be folded, where `ingest_bytes` has room for more."""
LOOK_SECONDS = 0.005
"""How often whoever is next looks for room."""
PACE_SECONDS = 30.0
"""The time over which an upload's rate is averaged."""


@dataclass(frozen=True)
class Limits:
    """What an upload may not exceed: bytes waiting to be folded, bytes that stay free on disk, uploads at once, those
    of one party, and seconds that it waits for them."""

    ingest_bytes: int
    min_free_bytes: int
    max_uploads: int
    max_uploads_of_party: int
    max_wait: float


@dataclass(frozen=True)
class Measured:
    """What has to be asked for: bytes of durable updates that are not folded yet, and bytes free on disk."""

    unfolded: int
    free: int


@dataclass(frozen=True)
class Load:
    """How busy the server is; sizes in bytes. `arriving` counts the whole of every upload that has begun."""

    uploads: int
    arriving: int
    unfolded: int
    free: int


def room(size: int, ingest_bytes: int) -> int:
    """Bytes that may be under way or wait to be folded when an upload of `size` bytes joins them.

    Small ones are kept and folded together, and need many; of large ones a few keep everybody at work.
    """
    return ingest_bytes if size <= TOGETHER_BYTES else min(ingest_bytes, FEW * size)


def check_room(load: Load, size: int, limits: Limits) -> None:
    """Raises `overloaded` when one more upload, of `size` bytes, is too many: at once, waiting, or on the disk.

    An upload that finds an empty backlog always fits there: a model may be larger than `ingest_bytes`.
    """
    if load.uploads >= limits.max_uploads:
        raise Refusal(OVERLOADED, "too many uploads at once", expected=f"fewer than {limits.max_uploads}")
    backlog, most = load.arriving + load.unfolded, room(size, limits.ingest_bytes)
    if backlog and backlog + size > most:
        detail = "earlier updates are not folded yet"
        raise Refusal(OVERLOADED, detail, expected=f"at most {most} bytes", got=backlog + size)
    if load.free - load.arriving - size < limits.min_free_bytes:
        raise Refusal(
            OVERLOADED, "the disk is nearly full", expected=f"{limits.min_free_bytes} bytes left", got=load.free
        )


def too_slow(got: int, seconds: float, min_rate: float, *, held_up: bool) -> bool:
    """Whether `got` bytes in `seconds` are fewer than `min_rate` (bytes per second) asks for.

    Not the sender's fault when it was `held_up`: the server itself did not read on.
    """
    return not held_up and got < min_rate * seconds


def retry_after() -> int:
    """Seconds that somebody who was refused should wait."""
    return 1 + secrets.randbelow(RETRY_SECONDS)


def free_bytes(directory: Path) -> int:
    """Bytes that can still be written below `directory`. Blocks."""
    return shutil.disk_usage(directory).free


class Pressure:
    """The gauge of one process: it admits uploads and remembers what is under way."""

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
        self._turn = asyncio.Lock()  # fair: whoever waits longest is looked at first
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
                if self._outdated():  # nobody else did it meanwhile
                    self._landed = 0
                    self._measured = await self._measure()
                    self._measured_at = self._monotonic()
        return self._load()

    def _outdated(self) -> bool:
        return self._monotonic() - self._measured_at >= REFRESH_SECONDS

    def relieved(self) -> None:
        """Updates were folded: what is measured next may be less than what was measured last."""
        self._measured_at = float("-inf")

    @asynccontextmanager
    async def admit(self, size: int, party: bytes) -> AsyncIterator[None]:
        """Around all of an upload of `size` bytes by a party that has proved who it is.

        Those that find no room wait, first come first served, until `max_wait` is over. Raises `overloaded` or
        `database-unavailable`.
        """
        async with self._turn_of(party):
            await self._room(size)
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
            raise Refusal(OVERLOADED, "this party has too many uploads under way", expected=expected) from None
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

    async def _room(self, size: int) -> None:
        busy = self._turn.locked()
        refusal = Refusal(OVERLOADED, "others wait already") if busy else await self._look(size)
        if refusal is None:
            return
        try:
            async with asyncio.timeout(self._limits.max_wait), self._turn:
                while (found := await self._look(size)) is not None:
                    refusal = found
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise refusal from None

    async def _look(self, size: int) -> Refusal | None:
        try:
            check_room(await self.load(), size, self._limits)
        except Refusal as refusal:
            if refusal.problem is not OVERLOADED:
                raise
            return refusal
        return None

    async def check_disk(self, size: int = 0) -> None:
        """Raises `overloaded` when `size` more bytes, beside the uploads under way, would be refused for the disk."""
        load = await self.load()
        check_room(Load(0, 0, 0, load.free - load.arriving), size, self._limits)

    def _load(self) -> Load:
        return Load(self._uploads, self._arriving, self._measured.unfolded + self._landed, self._measured.free)


@asynccontextmanager
async def paced(request: web.Request, min_rate: float, seconds: float = PACE_SECONDS) -> AsyncIterator[None]:
    """Around reading a body: ends it with `request-timeout` when in any `seconds` it comes slower than `min_rate`.

    Without such a bound, a few senders that trickle their bytes hold every slot (slow loris).
    """
    content, transport = request.content, request.transport
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    try:
        async with asyncio.timeout(None) as deadline:

            def look(before: int) -> None:
                nonlocal timer
                if content.is_eof():
                    return
                held_up = isinstance(transport, asyncio.ReadTransport) and not transport.is_reading()
                if too_slow(content.total_bytes - before, seconds, min_rate, held_up=held_up):
                    deadline.reschedule(loop.time())
                else:
                    timer = loop.call_later(seconds, look, content.total_bytes)

            timer = loop.call_later(seconds, look, 0)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if not deadline.expired():
            raise
        detail = f"{content.total_bytes} bytes came before the upload stalled"
        raise Refusal(REQUEST_TIMEOUT, detail, expected=f"{min_rate:g} bytes per second over {seconds:g} s") from None
