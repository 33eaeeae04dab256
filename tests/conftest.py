"""What every test process does."""

import gc
import sys
from collections.abc import Iterator

import pytest


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again and again.
    A tenth of all tests' time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _servers_end() -> Iterator[None]:
    """aiohttp remembers the last 1,024 routes that a process served, and with each its application: a server of every
    test, with its engine and all compiled statements. A program has one; a test process had hundreds."""
    yield
    if web_app := sys.modules.get("aiohttp.web_app"):
        web_app._cached_build_middleware.cache_clear()
