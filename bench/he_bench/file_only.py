"""The least that a server could do with uploads: `python -m he_bench.file_only` writes every body to a file, unchecked.

What `he_server` costs beyond this is what its promises cost.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from aiohttp import web


def make_app(folder: Path) -> web.Application:
    """PUT anything anywhere: it becomes a file in `folder`, removed when it is whole.

    What is left to be written back would slow down whoever is measured next.
    """

    async def put(request: web.Request) -> web.Response:
        path = folder / secrets.token_hex(8)
        with await asyncio.to_thread(path.open, "wb") as file:
            async for block in request.content.iter_any():
                await asyncio.to_thread(file.write, block)
        await asyncio.to_thread(path.unlink)
        return web.Response(status=201)

    app = web.Application()
    app.router.add_put("/{path:.*}", put)
    return app


async def serve(port_file: Path) -> None:
    """Serve on a free port, written to `port_file`, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with tempfile.TemporaryDirectory(dir=port_file.parent) as folder:
        runner = web.AppRunner(make_app(Path(folder)), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        partial = port_file.with_suffix(".partial")
        partial.write_text(str(runner.addresses[0][1]))
        partial.replace(port_file)
        await stop.wait()
        await runner.cleanup()


def main(port_file: Annotated[Path, typer.Option(help="where to write the port")]) -> None:
    """Write uploads to files, and nothing else."""
    asyncio.run(serve(port_file))


if __name__ == "__main__":
    typer.run(main)
