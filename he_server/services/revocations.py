"""The authority's revocation list: the newest that is known, and a newer one that comes into force."""

from __future__ import annotations

from collections.abc import Callable

from he_protocol.identity.revocation import Revocations, check_newer
from he_server.services.threads import Threads
from he_server.store.revocations import RevocationStore

REVOCATIONS_SECONDS = 5.0
"""How late another process's revocation list may be seen."""


class RevocationCache:
    """The newest list, looked for in the database now and then. `clock` gives Unix seconds."""

    def __init__(self, store: RevocationStore, authority: bytes, threads: Threads, clock: Callable[[], float]) -> None:
        self._store = store
        self._authority = authority
        self._threads = threads
        self._clock = clock
        self._known = Revocations()
        self._due = 0.0

    async def current(self) -> Revocations:
        """The authority's newest list that this server has. Raises `database-unavailable`."""
        now = self._clock()
        if now >= self._due:
            self._due = now + REVOCATIONS_SECONDS  # concurrent callers need not query the database, too
            newer = await self._store.newer(self._known.number)
            if newer:
                found = await self._threads.run(Revocations.read, newer, self._authority)
                self._known = max(found, self._known, key=lambda known: known.number)
        return self._known

    def invalidate(self) -> None:
        """A newer list was stored: look for it the next time."""
        self._due = 0.0

    async def accept(self, token: str) -> bool:
        """Store a newer list, from any sender; False for the one that is known. Raises what is wrong with it."""
        if token and token == (await self.current()).token:
            return False
        offered = await self._threads.unproved(lambda: Revocations.read(token, self._authority))
        check_newer(await self.current(), offered)  # before anybody waits for the database
        created = await self._store.learn(offered, self._clock())
        self.invalidate()
        return created
