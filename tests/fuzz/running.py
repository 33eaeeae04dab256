"""A server that answers on a port while the tests, which are not asynchronous, send it bytes."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from he_protocol import frames
from he_protocol.identity.jws import SigningKey
from he_protocol.messages import Contribution, SealedSeeds
from he_server.services.context import open_server
from he_server.settings import Settings
from he_testing.clocks import FakeClock
from tests.server.world import START, World, initial_model

T = TypeVar("T")


class Running:
    """A world whose server answers on a port while its loop runs in a thread of its own.

    Round 1 is published, round 2 waits for shares, round 3 is open.
    """

    def __init__(self, settings: Settings, authority: SigningKey) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.world = World(authority, settings.read_key(), FakeClock(START))
        try:
            self.do(self._prepare(settings))
        except BaseException:
            self._end_loop()
            raise
        self.url = str(self.world.http.make_url("")).rstrip("/")
        self.client = self.world.person("fuzzer", "client")
        self.upload = self.world.upload(self.client)
        config = self.world.config(name="other")
        self.task_frame = frames.start(authority.sign(config).encode()) + initial_model(config)
        holder = self.world.holders[0]
        contribution = Contribution(self.world.task.hash, 1, holder.name, (SealedSeeds("holder-1", b"box"),))
        self.post = frames.start(holder.key.sign(contribution).encode())
        self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def _prepare(self, settings: Settings) -> None:
        world = self.world
        await world.start(open_server(settings, world.clock))
        await world.add_task()
        await world.fill()
        await world.work()
        await world.open(1)
        await world.fill(first=3)
        await world.work()
        self.share = await world.share(0, 2)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def stop(self) -> None:
        self.do(self.world.stop())
        self._end_loop()

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
