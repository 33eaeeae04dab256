"""A real pgbouncer in transaction mode between server and database: every transaction may get another connection."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from he_migrations.run import upgrade
from he_server.store.address import Address
from he_server.store.engine import Database, make_engine
from tests.support.postgres import new_database

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(not Path(PROGRAM).exists(), reason="pgbouncer is not installed"),
]


@contextmanager
def pooled(url: str, folder: Path) -> Iterator[str]:
    """The same database through a pooler."""
    parts = urlsplit(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = free.getsockname()[1]
    file = folder / "pgbouncer.ini"
    file.write_text(CONFIGURATION.format(host=parts.hostname, port=parts.port, user=parts.username, own=own))
    user = ("-u", "nobody") if os.getuid() == 0 else ()  # it does not run as root
    process = subprocess.Popen([PROGRAM, *user, str(file)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", own)):
                    break
            time.sleep(0.05)
        yield f"postgres://{parts.username}@127.0.0.1:{own}{parts.path}"
    finally:
        process.terminate()
        process.wait()


async def _work(url: str) -> None:
    """More transactions at once than the pooler has connections, of few statements."""
    address = Address.read(url)
    await upgrade("server", address.url, address.options)
    database = Database(make_engine(address))

    async def some() -> None:
        for _ in range(5):
            await database.ping()
            await database.time()
            async with database.alone():
                pass

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(some() for _ in range(8)))
    finally:
        await database.close()


@pytest.mark.parametrize("query", ["statement_cache_size=0", "pgbouncer=true"])
def test_transactions_go_through_a_pooler(tmp_path: Path, query: str) -> None:
    with new_database() as url, pooled(url, tmp_path) as through:
        asyncio.run(_work(f"{through}?{query}"))


def test_without_the_parameter_statements_are_looked_for_where_they_are_not(tmp_path: Path) -> None:
    """So that the test above can fail."""
    with new_database() as url, pooled(url, tmp_path) as through, pytest.raises(Exception, match="prepared statement"):
        asyncio.run(_work(through))
