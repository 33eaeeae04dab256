"""Limits for parties that have not proved their identity: few requests a second, and little memory for bodies.

Clients and key holders are not affected: `he_server.services.backpressure` admits their uploads once they are
known.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from he_protocol.errors import ProblemError
from he_protocol.problems import OVERLOADED, REQUEST_TIMEOUT

BURST_SECONDS = 5.0
"""How long strangers may save up what they do not use."""
TURN_SECONDS = 3.0
"""How long a request waits for its turn before it is refused."""
SLOTS, SLOTS_OF_ADDRESS = 8, 2
"""Bodies under way at once: in all, and from one address."""
BODY_BYTES = 16 * 1024 * 1024
"""Bytes of all these bodies that may be in memory."""
PROOF_SECONDS = 10.0
"""What proves that a body may be read (a signed head, or all of a signed list) comes within this time."""
PACE_SECONDS, PACE_RATE = 5.0, 16 * 1024
"""After that, the least rate in bytes per second, averaged over this time in seconds."""


class RateLimiter:
    """Limits requests of strangers to `rate` per second. A request that proves its sender gives its turn back.

    Requests above the rate wait; those whose connection has made the fewest requests go first.
    """

    def __init__(self, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._monotonic = monotonic
        self._saved = self._most = max(1.0, rate * BURST_SECONDS)
        self._at = monotonic()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._came = 0
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, asked: int) -> None:
        """Wait for a turn, on a connection that has made `asked` requests before. Raises `overloaded`."""
        self._let_in()  # requests that timed out leave the queue
        if not self._waiting and self._left() >= 1.0:
            self._saved -= 1.0
            return
        self._came += 1
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (asked, self._came, turn))
        self._wake_later()
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn
        except TimeoutError:
            expected = f"at most {self._rate:g} requests per second of all that have not proved their identity"
            raise ProblemError(OVERLOADED, "too many strangers ask at once", expected=expected) from None

    def give_back(self) -> None:
        """It was no stranger."""
        self._saved = min(self._most, self._left() + 1.0)
        self._let_in()

    def _left(self) -> float:
        now = self._monotonic()
        self._saved = min(self._most, self._saved + (now - self._at) * self._rate)
        self._at = now
        return self._saved

    def _let_in(self) -> None:
        while self._waiting and (self._waiting[0][2].done() or self._left() >= 1.0):
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                self._saved -= 1.0
                turn.set_result(None)
        self._wake_later()

    def _wake_later(self) -> None:
        if self._waiting and self._timer is None:
            seconds = max(0.0, 1.0 - self._left()) / self._rate
            self._timer = asyncio.get_running_loop().call_later(seconds, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._let_in()


class BodyBudget:
    """Admits bodies that strangers send: a few at once, with a bound on their bytes in memory. Others wait a little."""

    def __init__(self) -> None:
        self._addresses: Counter[str] = Counter()
        self._bytes = 0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def admit(self, address: str, size: int) -> AsyncIterator[None]:
        """Around a body of which `size` bytes will be in memory. Raises `overloaded`."""
        try:
            async with asyncio.timeout(TURN_SECONDS), self._freed:
                await self._freed.wait_for(lambda: self._fits(address, size))
                self._addresses[address] += 1
                self._bytes += size
        except TimeoutError:
            expected = f"at most {SLOTS}, {SLOTS_OF_ADDRESS} from an address, and {BODY_BYTES} bytes"
            raise ProblemError(OVERLOADED, "others send without a proof, too", expected=expected) from None
        try:
            yield
        finally:
            self._bytes -= size
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]
            async with self._freed:
                self._freed.notify_all()

    def _fits(self, address: str, size: int) -> bool:
        return has_slot(self._addresses.total(), self._addresses[address], self._bytes + size)


def has_slot(bodies: int, of_address: int, size: int) -> bool:
    """Whether one more body fits: beside all others, those of its address, and with `size` bytes of all of them."""
    return bodies < SLOTS and of_address < SLOTS_OF_ADDRESS and size <= BODY_BYTES


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Around reading what proves a body's worth. Raises `request-timeout`."""
    try:
        async with asyncio.timeout(PROOF_SECONDS):
            yield
    except TimeoutError:
        raise ProblemError(REQUEST_TIMEOUT, "no proof came in time", expected=f"within {PROOF_SECONDS:g} s") from None
