"""How many examples (few in CI, more with HUSHSUM_FUZZ_EXAMPLES), and a server to send them to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from he_migrations.run import upgrade
from he_party.keyfile import KeyRecord, write_private
from he_protocol.identity.jws import SigningKey, jwk_x
from he_server.settings import Settings
from he_server.store.address import Address

from .running import Running

settings.register_profile(
    "hushsum-fuzz",
    deadline=None,
    max_examples=int(os.environ.get("HUSHSUM_FUZZ_EXAMPLES", "60")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("hushsum-fuzz")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    asyncio.run(upgrade("server", Address.of_file(folder / "server.db").url))
    key, authority = SigningKey.generate(), SigningKey.generate()
    write_private(folder / "server.key", KeyRecord("aggregator", key.public, key.private))
    (folder / "authority.pub").write_text(jwk_x(authority.public))
    found = Running(Settings(data_dir=folder, drain_seconds=5.0), authority)
    yield found
    found.stop()
