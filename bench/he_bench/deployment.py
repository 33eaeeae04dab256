"""Real processes for one world: a server and its key holders, by the commands that an operator uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from he_bench.world import World
from he_testing.deployment import SERVER, ProvisionedDeployment, settle


class Deployment(ProvisionedDeployment):
    """A world's server and committee, with files under `root`; its clients stay in this process.

    The server may be several processes that share a data directory and a database, SQLite where no address is given.
    """

    def __init__(self, root: Path, world: World, database_url: str = "") -> None:
        tensors = world.task.config.model.tensors
        zeros = {spec.name: np.zeros(spec.shape, dtype=np.float32) for spec in tensors}
        settle(root, world.parties, world.task, zeros)
        environment = {"HUSHSUM_SERVER_DATABASE_URL": database_url} if database_url else {}
        super().__init__(root, environment=environment, poll_seconds=0.02)
        self.world = world

    @property
    def data_dir(self) -> Path:
        """Where the server keeps blobs, and SQLite its files."""
        return self.root / SERVER

    def server_pids(self) -> list[int]:
        """Of the server's processes."""
        return [process.pid for name, process in self.running.items() if name.startswith(SERVER)]

    async def start_servers(self, count: int = 1) -> list[str]:
        """Give the database the world's task, and start so many processes; returns their URLs."""
        await asyncio.to_thread(self.add_task)
        serve = ("he-server", "serve", "--data-dir", self.data_dir, "--port", "0")
        return [await asyncio.to_thread(self.listen, f"{SERVER}-{number}", *serve) for number in range(count)]

    async def start_file_only(self) -> str:
        """Start `he_bench.file_only`; returns its URL."""
        return await asyncio.to_thread(self.listen, "file-only", "python", "-m", "he_bench.file_only")


@asynccontextmanager
async def deployed(root: Path, world: World, database_url: str = "") -> AsyncIterator[Deployment]:
    """A deployment whose processes end with the block."""
    deployment = await asyncio.to_thread(Deployment, root, world, database_url)
    try:
        yield deployment
    finally:
        await asyncio.to_thread(deployment.stop)
