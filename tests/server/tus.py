"""A client of resumable uploads that does one request at a time, right or wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import ClientResponse

from he_protocol import paths, tus

from .world import Person, Upload, World

VERSION = {"Tus-Resumable": tus.VERSION}


async def begin(world: World, client: Person, upload: Upload, /, **headers: str) -> ClientResponse:
    """Begin an upload; `headers` (with _ for -) replace what is sent, or with "" leave it out."""
    about = {"Upload-Length": str(len(upload.frame)), "Upload-Metadata": tus.metadata(upload.id)}
    return await world.call(
        client, "POST", paths.uploads_path(world.task.id), headers=_changed(VERSION | about, headers)
    )


async def begun(world: World, client: Person, upload: Upload) -> str:
    """The path of an upload that was begun."""
    response = await begin(world, client, upload)
    assert response.status == 201, await response.text()
    return response.headers["Location"]


async def append(
    world: World, path: str, offset: int, data: bytes | AsyncIterator[bytes], method: str = "PATCH", /, **headers: str
) -> ClientResponse:
    about = {"Upload-Offset": str(offset), "Content-Type": tus.CONTENT_TYPE}
    return await world.call(None, method, path, data=data, headers=_changed(VERSION | about, headers))


async def ask(world: World, path: str, method: str = "HEAD") -> ClientResponse:
    return await world.call(None, method, path, headers=VERSION)


async def offset(world: World, path: str) -> int:
    """Where an upload stands."""
    response = await ask(world, path)
    assert response.status == 200
    return int(response.headers["Upload-Offset"])


def _changed(headers: dict[str, str], changes: dict[str, Any]) -> dict[str, str]:
    changed = headers | {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in changed.items() if value}
