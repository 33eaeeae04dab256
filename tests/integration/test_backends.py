"""The same round on PostgreSQL, and under TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from he_client.settings import ClientSettings
from he_party.http_transport import HttpTransport, RetryPolicy
from he_protocol.problems import BAD_SETTINGS, UNREACHABLE
from he_testing.problems import expect_problem
from tests.integration.processes import CLIENTS, TASK, Processes, Round
from tests.support.postgres import new_database
from tests.support.schemes import SCHEMES


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A new, empty database."""
    with new_database() as url:
        yield url


def started(root: Path, pair: tuple[str, str], environment: dict[str, str], tls: Path | None = None) -> Processes:
    processes = Processes(root, *pair, environment, tls)
    try:
        processes.start()
    except BaseException:
        processes.stop()
        raise
    return processes


@pytest.mark.postgres
def test_a_round_and_a_crash_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    processes = started(tmp_path, SCHEMES[-1], {"HUSHSUM_SERVER_DATABASE_URL": postgres_url})

    async def work() -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(processes.client(n)) for n in range(1, CLIENTS + 1)]
            assert await Round(processes, clients, seed=1).publish() == 1
            crashed = Round(processes, clients, seed=2)
            await crashed.submit()
            processes.kill("server")
            processes.start_server()
            assert await crashed.wait() == 2

    try:
        asyncio.run(work())
        assert not (tmp_path / "server" / "server.db").exists()
    finally:
        processes.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A throw-away authority, and a certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    now = datetime.datetime.now(datetime.UTC)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    ca = (
        builder(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    server = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), server_key)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    (folder / "server-key.pem").write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.mark.long
def test_a_round_under_tls(tmp_path: Path, certificates: Path) -> None:
    """Client and holders trust the authority that they were given, and nothing else."""
    processes = started(tmp_path, SCHEMES[-1], {}, certificates)

    async def work() -> None:
        tls = ClientSettings.load(tls_ca=certificates / "ca.pem").tls
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(processes.client(n, tls)) for n in range(1, CLIENTS + 1)]
            assert await Round(processes, clients, seed=1).publish() == 1
        brief = RetryPolicy(first=0.01, longest=0.02, give_up=0.1)
        identity = processes.identity(1)
        wrong = (
            (None, processes.url, BAD_SETTINGS),
            (tls, processes.url.replace("https:", "http:"), UNREACHABLE),
        )
        for context, url, problem in wrong:
            async with HttpTransport(url, identity, tls=context, retry=brief) as transport:
                with expect_problem(problem):
                    await transport.task(TASK)

    try:
        assert processes.url.startswith("https://")
        asyncio.run(work())
    finally:
        processes.stop()
