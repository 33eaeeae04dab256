"""A small storm: everything at once, for a moment. `tests.security.attacks.storm` is all of it, with figures."""

from __future__ import annotations

import pytest

from tests.security.attacks.storm import MOST_MEMORY, storm


@pytest.mark.long  # tests/server/test_strangers.py has each kind by itself
async def test_honest_clients_go_on_in_a_storm_of_abuse() -> None:
    """No rate is asked for here: tests beside this one have the machine as well."""
    found = await storm(10, 2.0, scale=0.2, think=0.5)
    assert found.during > 0
    assert found.memory < MOST_MEMORY
    assert found.disk_after <= found.disk_before
