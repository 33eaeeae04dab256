"""The server has few rooms, on floors, without circles; and what says so would notice."""

from __future__ import annotations

import pytest

from tests.architecture.graph import module_arrows, room_arrows, shape
from tests.architecture.source import PACKAGES

FLOORS = ("rules", "blobs", "store", "settings", "services", "jobs", "http", "cli")
"""Of he_server, from the bottom up: imports go down."""


def test_circles_and_depth_are_found() -> None:
    found = shape(
        {"a": frozenset("b"), "b": frozenset("ce"), "c": frozenset("d"), "d": frozenset("b"), "e": frozenset()}
    )
    assert found.circles == (frozenset("bcd"),)
    assert (found.rooms, found.count, found.depth) == (5, 5, 3)


def test_the_servers_rooms() -> None:
    found = shape(room_arrows("he_server"))
    assert found.rooms <= 12
    assert not found.circles
    assert found.depth <= 9


def test_the_servers_imports_go_down() -> None:
    arrows = room_arrows("he_server")
    assert arrows.keys() == {*FLOORS, "__main__"}
    for room, others in arrows.items():
        if room in FLOORS:
            assert others <= set(FLOORS[: FLOORS.index(room)]), room
    assert not arrows["rules"]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_one_another(package: str) -> None:
    assert not shape(module_arrows(package)).circles
