"""What strangers, and one enrolled client, do to a server that they want to stop.

`python -m tests.security.attacks.abuse FILE`:
FILE is JSON, an `Abuse`. Loopback only. Every kind runs in so many tasks at once until the process is ended.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec
import numpy as np

from he_protocol import frames, paths
from he_protocol.identity.jws import SigningKey
from he_protocol.identity.requests import prove_request

PAUSE = 0.02
HOST = "127.0.0.1"


class Abuse(msgspec.Struct):
    """Where the server is, what everybody knows of its task, and a client's own key; `scale` 1 is all of it."""

    port: int
    task: str
    token: str
    header: bytes
    values: int
    audience: str
    credential: str
    public: bytes
    private: bytes
    scale: float = 1.0

    def proof(self, method: str, path: str, key: SigningKey | None = None) -> dict[str, str]:
        signer = key or SigningKey(self.public, self.private)
        jti = secrets.token_hex(8)
        arguments = {"audience": self.audience, "method": method, "path": path, "now": time.time(), "jti": jti}
        return prove_request(signer, self.credential, **arguments)  # type: ignore[arg-type]

    async def raw(self, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        writer.write(sent)
        await writer.drain()
        return reader, writer


Attack = Callable[[Abuse, aiohttp.ClientSession], Awaitable[None]]


async def trickle(abuse: Abuse, _: aiohttp.ClientSession) -> None:
    """Declares a gigabyte and sends it at a kilobyte a second."""
    reader, writer = await abuse.raw(
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n\0\0\4\0"
    )
    while not reader.at_eof():
        writer.write(bytes(512))
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read(4096)
    writer.close()


async def models(abuse: Abuse, session: aiohttp.ClientSession) -> None:
    """A known task with another initial model, each time a new one, in the form that is stored."""
    values = np.frombuffer(secrets.token_bytes(abuse.values), dtype=np.uint8).astype("<f4")
    body = frames.start(abuse.token.encode()) + abuse.header + values.tobytes()
    async with session.post(paths.TASKS, data=body) as answer:
        await answer.read()


async def bombs(_: Abuse, session: aiohttp.ClientSession) -> None:
    """A quarter of a gigabyte in 256 KiB."""
    headers = {"Content-Encoding": "gzip"}
    for method, path in (("PUT", paths.REVOCATIONS), ("GET", "/healthz"), ("POST", paths.TASKS)):
        async with session.request(method, path, data=BOMB, headers=headers) as answer:
            await answer.read()


async def streams(abuse: Abuse, session: aiohttp.ClientSession) -> None:
    """One client's event streams, kept open."""
    path = paths.events_path(abuse.task)
    async with session.get(path, headers=abuse.proof("GET", path)) as answer:
        await answer.read()
    await asyncio.sleep(1.0)


async def idle(abuse: Abuse, _: aiohttp.ClientSession) -> None:
    """A connection that says nothing, or half a head."""
    sent = secrets.choice((b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 4000))
    reader, writer = await abuse.raw(sent)
    await reader.read()
    writer.close()
    await asyncio.sleep(0.5)


async def pipelined(abuse: Abuse, _: aiohttp.ClientSession) -> None:
    """Requests with large heads, none of whose answers is waited for."""
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: " % n + b"a" * 4000 + b"\r\n" for n in range(40))
    reader, writer = await abuse.raw(b"")
    for _i in range(64):
        writer.write(one + b"\r\n")
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            await writer.drain()
            await reader.read()
    writer.close()


async def forged(abuse: Abuse, session: aiohttp.ClientSession) -> None:
    """A stolen credential with a proof by another key: signatures have to be checked to see it."""
    path = paths.update_path(abuse.task, secrets.token_hex(16))
    headers = abuse.proof("PUT", path, SigningKey.generate())
    async with session.put(path, data=bytes(20_000), headers=headers) as answer:
        await answer.read()


async def garbage(abuse: Abuse, _: aiohttp.ClientSession) -> None:
    """What is no HTTP."""
    reader, writer = await abuse.raw(secrets.token_bytes(200) + b"\r\n\r\n")
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await reader.read()
    writer.close()


async def flood(_: Abuse, session: aiohttp.ClientSession) -> None:
    """Everything public that costs something."""
    upload = paths.upload_path(secrets.token_hex(16))
    tus = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("GET", path, {}) for path in ("/metrics", "/readyz", paths.TASKS, paths.AUDIT_HEAD, "/v1/openapi.json", "/x")
    ]
    for method, path, headers in [*asked, ("PATCH", upload, tus), ("HEAD", upload, tus), ("OPTIONS", paths.TASKS, {})]:
        async with session.request(method, path, headers=headers, data=b"x" if method == "PATCH" else None) as answer:
            await answer.read()


async def proofs(abuse: Abuse, session: aiohttp.ClientSession) -> None:
    """An enrolled client that asks as often as it can: every proof has to be remembered."""
    path = f"{paths.task_path(abuse.task)}/rounds"
    async with session.get(path, headers=abuse.proof("GET", path)) as answer:
        await answer.read()


BOMB = b""
ATTACKS: dict[Attack, int] = {
    trickle: 20,
    models: 3,
    bombs: 3,
    streams: 200,
    idle: 600,
    pipelined: 8,
    forged: 6,
    garbage: 4,
    flood: 6,
    proofs: 2,
}
"""How many do what at once."""


def make_bomb() -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(squeeze.compress(bytes(1 << 24)) for _ in range(16)) + squeeze.flush()


async def repeat(attack: Attack, abuse: Abuse, session: aiohttp.ClientSession) -> None:
    while True:
        with suppress(aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError):
            await attack(abuse, session)
        await asyncio.sleep(PAUSE)


async def run(abuse: Abuse) -> None:
    global BOMB
    BOMB = make_bomb()
    connector = aiohttp.TCPConnector(limit=0, family=socket.AF_INET)
    base, patience = f"http://{HOST}:{abuse.port}", aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(base, connector=connector, timeout=patience) as session:
        counts = {attack: max(1, round(count * abuse.scale)) for attack, count in ATTACKS.items()}
        tasks = [repeat(attack, abuse, session) for attack, count in counts.items() for _ in range(count)]
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Abuse)))
