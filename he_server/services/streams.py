"""Listeners that wait for news of a task: the task is polled once for all of them, and their number is bounded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from he_protocol.documents import RoundStatus
from he_protocol.errors import ProblemError
from he_protocol.problems import TOO_MANY_STREAMS
from he_server.services.notifier import Notifier

POLL_SECONDS = 1.0
"""How often the database is asked for news that another process made."""
PAUSE_SECONDS = 0.05
"""The least time between two looks, where every update is news."""
HEARTBEAT_SECONDS = 5.0
"""How often a stream in which nothing happens finds out whether its reader has gone."""
STILL_HERE = b": still here\n\n"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Event:
    """A round as it is now, and what a stream says of it (WHATWG HTML section 9.2): encoded once for all readers."""

    status: RoundStatus
    text: bytes

    @classmethod
    def of(cls, status: RoundStatus) -> Event:
        data = msgspec.json.encode(status)
        return cls(status, b"event: round\nid: %d\ndata: %s\n\n" % (status.round, data))


@dataclass(eq=False)
class Watch(Generic[T]):
    """What is known of a task, None before the first look; `changed` is set, and replaced, when there is news."""

    known: T | ProblemError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    listeners: int = 0
    ended: bool = False
    looking: asyncio.Task[None] | None = None

    def tell(self, known: T | ProblemError) -> None:
        """Wake all listeners."""
        before, self.changed = self.changed, asyncio.Event()
        self.known = known
        before.set()

    def end(self) -> None:
        """Wake all listeners: there will be no more news."""
        self.ended = True
        self.changed.set()


async def changes(watch: Watch[tuple[Event, ...]], every: float) -> AsyncIterator[Event | None]:
    """The newest round first, then every change of state; None after `every` seconds without one.

    Raises why the rounds cannot be seen any longer.
    """
    told: dict[int, str] | None = None
    while not watch.ended:
        changed, known = watch.changed, watch.known or ()
        if isinstance(known, ProblemError):
            raise known
        for event in reversed(known if told is not None else known[:1]):
            if told is None or told.get(event.status.round) != event.status.state:
                yield event
        if known:
            told = {event.status.round: event.status.state for event in known}
        while not changed.is_set():
            try:
                async with asyncio.timeout(every):
                    await changed.wait()
            except TimeoutError:
                yield None


async def texts(watch: Watch[tuple[Event, ...]]) -> AsyncIterator[bytes]:
    """`changes`, as a stream says them."""
    async for event in changes(watch, HEARTBEAT_SECONDS):
        yield STILL_HERE if event is None else event.text


async def news(
    watch: Watch[T],
    pick: Callable[[T], R],
    read: Callable[[], Awaitable[R]],
    known: Callable[[R], bool],
    seconds: float,
) -> R:
    """What `read` finds, as soon as that is not `known`; after `seconds`, and at the end, whatever it finds.

    pick: the same out of what the watch knows. It may be older, so that it only says when to read again. Raises what
    `read` raises.
    """
    until = asyncio.get_running_loop().time() + seconds
    while True:
        changed = watch.changed
        found = await read()
        while known(found) and not watch.ended:
            try:
                async with asyncio.timeout_at(until):
                    await changed.wait()
            except TimeoutError:
                return found
            changed, seen = watch.changed, watch.known
            if isinstance(seen, ProblemError):  # nobody looks any longer: the next request begins anew
                return await read()
            if seen is None or not known(pick(seen)):
                break
        else:
            return found


def check_streams(streams: int, most: int, of_party: int, most_of_party: int) -> None:
    """Raises `too-many-streams` when one more is too many: of its party, or in all."""
    if of_party >= most_of_party:
        raise ProblemError(TOO_MANY_STREAMS, "of one party", expected=f"at most {most_of_party}")
    if streams >= most:
        raise ProblemError(TOO_MANY_STREAMS, "in all", expected=f"at most {most}")


class Streams(Generic[T]):
    """The listeners of one process: at most `most`, and `of_party` of one party. `look` reads the news of a task."""

    def __init__(
        self,
        most: int,
        of_party: int,
        notifier: Notifier,
        look: Callable[[str], Awaitable[T]],
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._most = most
        self._of_party = of_party
        self._notifier = notifier
        self._look = look
        self._pause = pause
        self._parties: Counter[bytes] = Counter()
        self._watched: dict[str, Watch[T]] = {}

    @contextmanager
    def listening(self, task: str, party: bytes) -> Iterator[Watch[T]]:
        """Around listening once. Raises `too-many-streams`."""
        check_streams(self._parties.total(), self._most, self._parties[party], self._of_party)
        self._parties[party] += 1
        watch = self._watched.setdefault(task, Watch())
        watch.listeners += 1
        if watch.looking is None or watch.looking.done():
            watch.looking = asyncio.create_task(self._keep_looking(task, watch))
        try:
            yield watch
        finally:
            self._parties[party] -= 1
            watch.listeners -= 1
            if not self._parties[party]:
                del self._parties[party]
            if not watch.listeners:
                watch.looking.cancel()
                self._watched.pop(task, None)

    def end(self) -> None:
        """The server is stopping: end all listeners."""
        for watch in self._watched.values():
            watch.end()

    async def _keep_looking(self, task: str, watch: Watch[T]) -> None:
        with self._notifier.listening(task) as news:
            while not watch.ended:
                news.clear()
                try:
                    known = await self._look(task)
                except ProblemError as refusal:
                    watch.tell(refusal)
                    return
                if known != watch.known and not watch.ended:
                    watch.tell(known)
                await asyncio.sleep(self._pause)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await news.wait()
