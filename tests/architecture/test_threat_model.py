"""docs/threat-model.md names tests, rules and places that exist, and leaves no rule of a key holder out.

Every place can be switched off (`make defences` does); that a test then fails is not looked at here.
"""

from __future__ import annotations

import ast
from functools import cache

from tests.architecture.source import ROOT
from tests.holder.test_rules import ATTACKS, STAGES
from tests.security.defences.edits import EDITS, Edit
from tests.security.defences.rows import ROWS, TEST, TEXT, Row
from tests.support.rules import EVERY_RULE


@cache
def defined(path: str) -> frozenset[str]:
    """Functions, methods, classes and top-level names of a file."""
    tree = ast.parse((ROOT / path).read_text())
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return frozenset(names | {target.id for target in assigned if isinstance(target, ast.Name)})


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 50


def test_a_row_names_a_place_and_a_test_that_exist() -> None:
    def wrong(row: Row) -> list[str]:
        found = [f"no {what}" for what, have in (("test", row.tests), ("place", row.places)) if not have]
        for place in row.places:
            path, name = place.split(": ")
            if name not in defined(path):
                found.append(f"{path} has no {name}")
            if not any(edit.place == place and edit.belongs_to(row) for edit in EDITS):
                found.append(f"no edit switches {place} off")
        return found

    assert {row.attack: found for row in ROWS if (found := wrong(row))} == {}


def test_every_test_that_is_mentioned_anywhere_exists() -> None:
    cases = {f"{stage}-{a.name}" for a in ATTACKS for stage, rules in STAGES.items() if a.rule in rules}
    for path, name, case in TEST.findall(TEXT):
        assert name in defined(path), path
        assert not case or case in cases


def test_an_edit_applies_to_the_source_of_a_place_that_is_listed() -> None:
    def wrong(edit: Edit) -> str:
        if not any(edit.belongs_to(row) for row in ROWS):
            return "no row has such a place"
        source = (ROOT / edit.path).read_text()
        try:
            without = edit.applied(source)
            compile(without, edit.path, "exec")
        except Exception as error:
            return repr(error)
        return "" if without != source else "changes nothing"

    assert {f"{edit.place} {edit.old}": found for edit in EDITS if (found := wrong(edit))} == {}


def test_every_rule_of_a_key_holder_is_listed() -> None:
    listed = {place for row in ROWS for place in row.places}
    assert {f"keys/he_holder/rules.py: {rule.__name__}" for rule in EVERY_RULE} <= listed


def test_every_hostile_test_file_is_used() -> None:
    used = {path for path, _, _ in TEST.findall(TEXT)}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "security" / "attacks").glob("test_*.py")}
    assert files - used == {"tests/security/attacks/test_revocation_commands.py"}
