"""Which weighting or combination a task has is asked of the objects in `he_protocol.aggregation`, and nowhere else."""

from __future__ import annotations

import ast
from typing import get_args

from he_protocol.aggregation.combination import COMBINATIONS, CombinationName
from he_protocol.aggregation.weighting import WEIGHTINGS, WeightingName
from tests.architecture.source import PACKAGES, Module, modules, offenders

NAMES = {*WEIGHTINGS, *COMBINATIONS}
FIELDS = {"weighting", "combination"}


def asked(tree: ast.AST) -> set[str]:
    """Comparisons, and cases of a match, with a policy's name or with the field that holds one."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare | ast.MatchValue):
            continue
        for part in ast.walk(node):
            match part:
                case ast.Constant(value=str(name)) if name in NAMES:
                    found.add(ast.unparse(node))
                case ast.Attribute(attr=name) if name in FIELDS:
                    found.add(ast.unparse(node))
    return found


def test_questions_are_seen() -> None:
    assert asked(ast.parse("a.weighting == b; c = x in ('median', 'y'); d = y == 'other'; e.combination.f(1)")) == {
        "a.weighting == b",
        "x in ('median', 'y')",
    }
    assert asked(ast.parse("match x:\n    case 'fixed': pass")) == {"'fixed'"}


def test_nobody_else_asks_by_name() -> None:
    others: list[Module] = [
        module
        for package in PACKAGES
        for module in modules(package)
        if not module.name.startswith("he_protocol.aggregation")
    ]
    assert not offenders(others, lambda module: asked(module.tree))


def test_every_name_has_an_object() -> None:
    assert set(get_args(WeightingName)) == set(WEIGHTINGS)
    assert set(get_args(CombinationName)) == set(COMBINATIONS)
