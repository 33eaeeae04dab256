"""A service for every test; see `tests.support.fixtures`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fixtures import (  # noqa: F401
    closed_port,
    proxy,
    service,
    silent,
    template,
    world,
)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For networks so small that torch's threads would mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
