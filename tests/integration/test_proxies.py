"""A round through a real nginx and a real HAProxy with common settings; skipped, by name, where they are not there."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from he_client import HushSumClient
from he_client.settings import ClientSettings
from he_holder.agent import Agent
from he_protocol.documents import RoundStatus
from he_protocol.problems import BAD_SETTINGS
from he_testing.problems import expect_problem
from tests.support.certificates import self_signed
from tests.support.service import Service, copy

WIDE = {"w": np.zeros((1000, 400), np.float32)}
"""Updates of about 1.5 MB: more than nginx lets through by default."""

NGINX = """
user root;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  gzip on;
  gzip_types *;
  gzip_proxied any;
  server {{
    listen 127.0.0.1:{port}{tls};
    {http2}
    location {prefix}/ {{
      proxy_pass {upstream}/;
      proxy_buffering {buffering};
      proxy_request_buffering {buffering};
      {more}
    }}
  }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  compression algo gzip
  compression type application/octet-stream application/json
frontend front
  bind 127.0.0.1:{port}{tls}
  default_backend back
backend back
  {more}
  server one {address}
"""

WEAK = r"""http-request replace-header If-None-Match (.*) W/\1
  http-response replace-header ETag (.*) W/\1"""
PLAIN = {"prefix": "", "buffering": "on", "http2": "", "more": "", "tls": ""}
PROXIES = {
    "nginx": PLAIN,
    "nginx, path prefix, HTTP/2": PLAIN | {"prefix": "/hushsum", "http2": "http2 on;"},
    "nginx, no buffering": PLAIN | {"buffering": "off"},
    "nginx, no ETags": PLAIN | {"more": "proxy_hide_header ETag;"},
    "nginx, GET and POST only": PLAIN | {"more": "limit_except GET POST { deny all; }"},
    "haproxy": PLAIN,
    "haproxy, weak ETags": PLAIN | {"more": WEAK},
    "haproxy, GET and POST only": PLAIN | {"more": "http-request deny deny_status 405 unless METH_GET || METH_POST"},
}
QUICK = {"nginx, GET and POST only", "haproxy, weak ETags"}
"""The others are for the long run."""
ASKING = {
    "nginx": " ssl; ssl_certificate {0}/server.pem; ssl_certificate_key {0}/server.pem;"
    " ssl_client_certificate {0}/trusted.pem; ssl_verify_client on",
    "haproxy": " ssl crt {0}/server.pem ca-file {0}/trusted.pem verify required",
}
"""A port with TLS that asks for a client certificate."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wide") / "world"
    plan: dict[str, Any] = {"privacy": {"unit": "none"}, "min_clients": 2, "max_clients": 2}
    asyncio.run(Service.provision(root, "kahe", "kahe-30", 2, model=WIDE, **plan))
    return root


@pytest.fixture
async def service(template: Path, tmp_path: Path) -> AsyncIterator[Service]:
    async with Service(copy(template, tmp_path / "world")) as service:
        yield service


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in PROXIES])
async def url(request: pytest.FixtureRequest, service: Service, tmp_path: Path) -> AsyncIterator[str]:
    """The server's, through a proxy."""
    program = request.param.split(",")[0]
    async with running(program, PROXIES[request.param], service, tmp_path) as url:
        yield url


@asynccontextmanager
async def running(
    program: str, options: dict[str, str], service: Service, folder: Path, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """The URL of a proxy before the server; `tls`: how it is asked whether it is there."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    port = free_port()
    if options["http2"] and version_of(found) < "1.25.1":
        options = options | {"http2": ""}
    config = folder / "proxy.conf"
    text = NGINX if program == "nginx" else HAPROXY
    address = service.url.removeprefix("http://")
    config.write_text(text.format(folder=folder, port=port, upstream=service.url, address=address, **options))
    arguments = [found, "-p", str(folder), "-c", str(config)] if program == "nginx" else [found, "-f", str(config)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    try:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}{options['prefix']}"
        await ready(url, process, tls)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def version_of(nginx: str) -> str:
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return said.strip().rpartition("/")[2]


async def ready(url: str, process: subprocess.Popen[bytes], tls: ssl.SSLContext | None) -> None:
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            try:
                async with session.get(f"{url}/healthz", ssl=tls or True) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("in_pieces_above", [pytest.param(1 << 16, marks=pytest.mark.long), 8 << 20])
async def test_a_round_goes_through(service: Service, url: str, in_pieces_above: int) -> None:
    """Whole, or in pieces where the proxy takes no more at once; holders, events and models too."""
    seen: list[RoundStatus] = []
    async with AsyncExitStack() as stack:
        clients = []
        for number in (1, 2):
            client = HushSumClient(
                url,
                service.identity(number),
                state_dir=service.folder(number) / "state",
                resumable_above=in_pieces_above,
            )
            clients.append(await stack.enter_async_context(client))
        task = await clients[0].task(service.task.config.name)

        async def listen() -> None:
            async for status in clients[0].changes(task):
                seen.append(status)

        listening = asyncio.create_task(listen())
        holders = [await stack.enter_async_context(service.holder(number)) for number in (1, 2, 3)]
        runs = [asyncio.create_task(Agent(holder, task, url, poll_seconds=0.02).run()) for holder in holders]
        assert (await clients[0].pull_model(task)).version == 0
        update = {"w": np.full((1000, 400), 0.5, np.float32)}
        sent = [await client.submit(task, update, base_version=0) for client in clients]
        assert await clients[0].wait(task, sent[0], within=60) == 1
        model = await clients[1].pull_model(task)
        assert np.allclose(model.tensors["w"], 0.5, atol=0.1)
        assert (await clients[1].pull_model(task)).version == 1  # it has not changed
        async with asyncio.timeout(20):
            while not any(one.state == "published" for one in seen):
                await asyncio.sleep(0.05)
        for run in (*runs, listening):
            run.cancel()
        await asyncio.gather(*runs, listening, return_exceptions=True)


@pytest.mark.parametrize("program", ASKING)
async def test_a_proxy_that_asks_for_certificates(service: Service, tmp_path: Path, program: str) -> None:
    """With ours all is as before; without it, or with one that the proxy does not know, we are told so at once."""
    known, stranger, server = (self_signed("127.0.0.1") for _ in range(3))
    for name, pair in (("known", known), ("stranger", stranger), ("server", server)):
        (tmp_path / f"{name}.pem").write_bytes(b"".join(pair))
    (tmp_path / "trusted.pem").write_bytes(known[1])
    ca = tmp_path / "server.pem"
    shown = ClientSettings.load(tls_ca=ca, tls_cert=tmp_path / "known.pem").tls
    options = PLAIN | {"tls": ASKING[program].format(tmp_path)}
    async with running(program, options, service, tmp_path, shown) as url:
        state = tmp_path / "state"
        async with HushSumClient(url, service.identity(1), state_dir=state, tls=shown) as client:
            task = await client.task(service.task.config.name)
            sent = await client.submit(task, {"w": np.zeros((1000, 400), np.float32)}, base_version=0)
            assert sent.round == 1
        for files in ({}, {"tls_cert": tmp_path / "stranger.pem"}):
            tls = ClientSettings.load(tls_ca=ca, **files).tls
            async with asyncio.timeout(20), HushSumClient(url, service.identity(1), state_dir=state, tls=tls) as client:
                with expect_problem(BAD_SETTINGS, "tls_cert"):
                    await client.task(service.task.config.name)
                with expect_problem(BAD_SETTINGS, "tls_cert"):
                    await client.submit(task, {"w": np.zeros((1000, 400), np.float32)}, base_version=0)
