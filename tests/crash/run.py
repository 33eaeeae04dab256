"""One run: start, kill, heal, account."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.crash.account import Evidence, Finding, account
from tests.crash.collect import collect
from tests.crash.killer import Killer, Toll
from tests.crash.world import World
from tests.support.postgres import new_database

Database = Literal["sqlite", "postgresql"]
DATABASES: tuple[Database, ...] = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Report:
    """What was done to the processes of one database, and what came of it. Times in seconds.

    logs: where there are findings, the end of everybody's log.
    """

    database: Database
    seed: int
    seconds: float
    toll: Toll
    evidence: Evidence
    findings: tuple[Finding, ...]
    logs: Mapping[str, str] = field(default_factory=dict)

    @property
    def rounds(self) -> Counter[str]:
        """Rounds by state; failed ones by problem."""
        return Counter(r.failure.rsplit(":", 1)[-1] or r.state for r in self.evidence.rounds)

    @property
    def found(self) -> Counter[str]:
        """Findings by kind."""
        return Counter(finding.kind for finding in self.findings)

    def __str__(self) -> str:
        """What ended by itself, what was found, and the logs that may say why."""
        exits = [f"ended by itself: {line}" for line in self.toll.exits]
        found = [f"{finding.kind}: {finding.what}" for finding in self.findings]
        return "\n".join([*exits, *found, *(f"--- {name}\n{log}" for name, log in self.logs.items())])


def run(
    database: Database, root: Path, kills: int, seed: int, progress: Callable[[int], None], *, pace: float = 1.0
) -> Report:
    """Kill processes of a new deployment under `root` so many times, let it heal, and account for every update.

    `pace`: how fast they die.
    """
    started = time.monotonic()
    with _database_url(database) as url:
        world = World(root, url)
        try:
            world.start()
            killer = Killer(world, seed, pace)
            killer.run(kills, progress)
            killer.toll.exits += [f"{name}: exit code {code}" for name, code in world.heal()]
            evidence = asyncio.run(collect(world))
        finally:
            world.stop()
    findings = tuple(account(evidence))
    logs = world.logs() if findings else {}
    return Report(database, seed, time.monotonic() - started, killer.toll, evidence, findings, logs)


@contextmanager
def _database_url(database: Database) -> Iterator[str]:
    if database == "sqlite":
        yield ""
    else:
        with new_database() as url:
            yield url
