"""Who dies when: every process lives for a random time and is started again at once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from he_testing.deployment import SECONDS
from tests.crash.world import World

STARTING = 0.25
"""How often a server dies before it is ready, or little later: within STARTING_SECONDS of its launch."""
STARTING_SECONDS = 1.5
SERVER_STARTS = 4.0
"""The longest life of other servers, counted from when they are ready, in multiples of the time that they took to
start: on a busy machine rounds take longer, too."""
PARTY_STARTS = 24.0
"""The longest life of a client or key holder, counted from its launch, in multiples of the time that the last server
took to start: nobody should die of slowness before there was anything to do. There are eight of them."""
CONNECTIONS_STARTS = 4.0
"""The longest time between two cuts of PostgreSQL's connections, in the same unit."""
TOGETHER = 0.15
"""How often somebody else dies at the same moment."""
SERVER, CONNECTIONS = "server", "connections"


@dataclass
class Toll:
    """What was done, and what happened on its own.

    kills: SIGKILLs by process. starting: of these, servers that were not ready yet. together: moments at which two
    processes died. cuts: times at which PostgreSQL ended all connections. starts: seconds from launch to readiness,
    of the servers that got there. exits: processes that ended by themselves.
    """

    kills: Counter[str] = field(default_factory=Counter)
    starting: int = 0
    together: int = 0
    cuts: int = 0
    starts: list[float] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)


class Killer:
    """Kills processes of a world, each at a time that is drawn when it is started.

    `pace` divides all lifetimes but those of servers that are still starting.
    """

    def __init__(self, world: World, seed: int, pace: float) -> None:
        self.toll = Toll()
        self._world = world
        self._pace = pace
        self._draw = random.Random(seed)
        self._parties = (SERVER, *world.processes.holders, *world.clients)
        self._launched = 0.0
        self.toll.starts.append(world.processes.start_seconds)
        self._due: dict[str, float] = {CONNECTIONS: inf, SERVER: self._server_dies()}
        for name in self._parties[1:]:
            self._schedule(name)
        if world.database_url:
            self._schedule(CONNECTIONS)

    def run(self, kills: int, progress: Callable[[int], None]) -> None:
        """Kill until there were at least so many kills, and on PostgreSQL a cut; `progress` gets how many came.

        On a busy machine all kills may come before the first cut is due: then the killing goes on until it came.
        """
        while self.toll.kills.total() < kills or (self._world.database_url and not self.toll.cuts):
            self._look()
            first = min(self._due, key=self._due.__getitem__)
            if self._due[first] > time.monotonic():
                time.sleep(0.02)
            elif first == CONNECTIONS:
                self._world.cut_connections()
                self.toll.cuts += 1
                self._schedule(first)
            else:
                together = self._draw.random() < TOGETHER
                progress(self._kill({first, self._draw.choice(self._parties) if together else first}))

    def _kill(self, victims: set[str]) -> int:
        self.toll.starting += SERVER in victims and not self._world.processes.server_ready
        self.toll.together += len(victims) - 1
        self._world.kill(victims)
        self.toll.kills.update(victims)
        self._revive(victims)
        return len(victims)

    def _look(self) -> None:
        """See who ended without us, and whether the server is ready."""
        ended = self._world.exited()
        self.toll.exits += [f"{name}: exit code {code}" for name, code in ended.items()]
        self._revive(ended)
        if self._due[SERVER] == inf:
            age = time.monotonic() - self._launched
            assert age < SECONDS, f"the server does not start: {self._world.processes.log(SERVER)[-2000:]}"
            if self._world.processes.server_ready:
                self.toll.starts.append(age)
                self._due[SERVER] = self._server_dies()

    def _server_dies(self) -> float:
        """When, for one that is ready now."""
        return time.monotonic() + self._draw.uniform(0, SERVER_STARTS * self.toll.starts[-1] / self._pace)

    def _revive(self, names: Iterable[str]) -> None:
        for name in names:
            self._world.launch(name)
            self._schedule(name)

    def _schedule(self, name: str) -> None:
        now = time.monotonic()
        if name == SERVER:
            self._launched = now
            early = self._draw.random() < STARTING
            self._due[name] = now + self._draw.uniform(0, STARTING_SECONDS) if early else inf
        else:
            starts = CONNECTIONS_STARTS if name == CONNECTIONS else PARTY_STARTS
            self._due[name] = now + self._draw.uniform(0, starts * self.toll.starts[-1] / self._pace)
