"""docs/threat-model.md names tests, rules and places that exist, and leaves no rule of a key holder out."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from keys.checks import RULES
from tests.architecture.source import ROOT
from tests.keys.test_checks import ATTACKS

TEXT = (ROOT / "docs" / "threat-model.md").read_text()
ROWS = [
    line.split(" | ")
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| attack", "| ---"))
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[([^]]+)\])?`")
PLACE = re.compile(r"`(\w[\w/]*\.py): (\w+)`")


@cache
def defined(path: str) -> frozenset[str]:
    """Functions, methods, classes and top-level names of a file."""
    tree = ast.parse((ROOT / path).read_text())
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return frozenset(names | {target.id for target in assigned if isinstance(target, ast.Name)})


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 50
    assert all(len(row) == 4 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| ")[:60])
def test_a_row_names_a_place_and_a_test_that_exist(row: list[str]) -> None:
    _, _, where, test = row
    places, tests = PLACE.findall(where), TEST.findall(test)
    assert tests
    assert places
    for path, name in places:
        assert name in defined(path), path
    for path, name, case in tests:
        assert name in defined(path), path
        if case:
            assert case in {f"{attack.rule.__name__}-{attack.what}".replace(" ", "_") for attack in ATTACKS}


def test_every_test_that_is_mentioned_anywhere_exists() -> None:
    for path, name, _ in TEST.findall(TEXT):
        assert name in defined(path), path


def test_every_rule_of_a_key_holder_is_listed() -> None:
    listed = {name for row in ROWS for path, name in PLACE.findall(row[2]) if path == "keys/checks.py"}
    assert {rule.__name__ for rule in RULES} <= listed


def test_every_hostile_test_file_is_used() -> None:
    used = {path for path, _, _ in TEST.findall(TEXT)}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert files - used == {"tests/hostile/test_revocation_commands.py"}
