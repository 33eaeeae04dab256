"""Every refusal is raised somewhere and seen by some test; no secret shows in a repr."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from functools import cache
from typing import Any

import msgspec
import pytest

from he_holder.hpke_key import HpkeKey
from he_protocol import problems
from he_protocol.problems import PROBLEMS, ProblemType
from he_server.http.openapi import problems_of
from he_server.http.routes import ROUTES
from tests.architecture.source import ROOT, SHIPPED, modules

CONSTANTS = {
    value.slug: name for name, value in vars(problems).items() if isinstance(value, ProblemType) and name.isupper()
}
SECRET_FIELDS = re.compile(r"private|secret|seed|passphrase|^hpke$|password")


def test_every_problem_has_its_constant() -> None:
    assert CONSTANTS.keys() == PROBLEMS.keys()


@cache
def raised() -> frozenset[str]:
    """Constants that code uses, imports and the table of problems left out."""
    names: set[str] = set()
    for package in SHIPPED:
        for module in modules(package):
            if module.name in {"he_protocol.problems", "he_server.http.routes"}:  # there they are listed, not raised
                continue
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Name):
                    names.add(node.id)
                elif isinstance(node, ast.Attribute):
                    names.add(node.attr)
    return frozenset(names)


@cache
def texts_of_tests() -> str:
    return "\n".join(
        path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name != "test_problems.py"
    )


def test_it_is_raised_somewhere() -> None:
    assert [slug for slug in PROBLEMS if CONSTANTS[slug] not in raised()] == []


def test_some_test_names_it() -> None:
    texts = texts_of_tests()
    named = {slug for slug in PROBLEMS if re.search(rf"\b{CONSTANTS[slug]}\b|[\"']{slug}[\"']", texts)}
    assert PROBLEMS.keys() - named == set()


def test_of_what_an_upload_may_meet_these_drop_the_sealed_update() -> None:
    (put,) = [route for route in ROUTES if route.method == "PUT" and "/updates/" in route.path]
    uploads = [route for route in ROUTES if "/uploads" in route.path]
    met = {problem for route in (put, *uploads) for problem in problems_of(route)}
    assert {problem.slug for problem in met if problem.drops} == {
        "task-closed",
        "stale-update",
        "repeated-base",
        "wrong-task",
        "wrong-epoch",
        "wrong-size",
        "digest-mismatch",
        "residue-out-of-range",
        "update-id-reused",
        "unknown-protocol",
    }


def secret_types() -> list[tuple[type, str]]:
    """Every dataclass and message of the project with a field that sounds secret."""
    found = []
    for package in SHIPPED:
        for module in modules(package):
            if module.name.endswith("__main__") or module.name.startswith("he_client.training"):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    if dataclasses.is_dataclass(value):
                        names = [field.name for field in dataclasses.fields(value)]
                    elif issubclass(value, msgspec.Struct):
                        names = list(value.__struct_fields__)
                    else:
                        continue
                    found += [(value, name) for name in names if SECRET_FIELDS.search(name)]
    return found


SHOWN = {("HolderEntry", "hpke"), ("Credential", "hpke"), ("EnrollRequest", "hpke")}
"""Public halves: the HPKE key that others seal to."""


def test_secret_fields_are_found() -> None:
    found = {(kind.__name__, name) for kind, name in secret_types()}
    assert {
        ("SigningKey", "private"),
        ("KeyRecord", "private"),
        ("HpkeRecord", "private"),
        ("SubshareSeed", "seed"),
    } <= found
    assert found >= SHOWN


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind, name in secret_types()
        if (kind.__name__, name) not in SHOWN
    ],
)
def test_no_secret_shows_in_a_repr(kind: Any, field: str) -> None:
    """An instance with nothing but the one field set, to something that would be recognised."""
    secret = f"a-secret-{field}-that-must-not-show"
    names = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else [f.name for f in dataclasses.fields(kind)]
    blank: Any = object.__new__(kind) if dataclasses.is_dataclass(kind) else kind(*[b""] * len(names))  # type: ignore[arg-type]
    for name in names:
        value = (secret,) if name == field and name.endswith("s") else secret if name == field else b""
        (msgspec.structs.force_setattr if issubclass(kind, msgspec.Struct) else object.__setattr__)(blank, name, value)
    assert secret not in repr(blank)
    assert secret not in str(blank)


def test_an_hpke_key_hides_its_private_half() -> None:
    key = HpkeKey.generate()
    assert len(key.private) > 32
    for shown in (repr(key), str(key)):
        assert repr(key.private)[2:20] not in shown
        assert key.private.hex()[:16] not in shown
