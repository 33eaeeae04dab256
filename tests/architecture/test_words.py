"""One word for each thing (docs/glossary.md): names of before do not come back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import PACKAGES, modules

OLD = """
Acceptance Bodies BodyPart Door EnrolRequest Grouped History Intake Keep Known OpenBlock Part PartDigest PartSeed
Pressure Request SealedUpdate Sealer SecretPart Seldom Server Standing StandingStore Together Turnstile
bare encoder floor judge keep_together keygen life_cycle make_opener open_block open_round
open_sum opened_key retry_after
"""
OLD_NAMES = frozenset(OLD.split())
"""Names of classes, functions, arguments and variables that have another word now."""
PIECES = "enrol grouped opener paced part parts pressure relieved room sealer standing storm sweep swept"
OLD_WORDS = frozenset(PIECES.split())
"""Words that are no piece of a name either."""
OTHER_MEANING = {("he_party.files", "private_opener")}
"""(module, name) where the word is the right one for something else."""


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module chooses: those that it uses may be other people's."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                yield node.attr
            case ast.alias() if node.asname:
                yield node.asname


def words(name: str) -> set[str]:
    """The words of a name: `KeyPart`, `key_part` and `_KEY_PART` have the same two.

    >>> sorted(words("_KeyPart2"))
    ['key', 'part']
    """
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def is_old(name: str) -> bool:
    return name.strip("_") in OLD_NAMES or bool(words(name) & OLD_WORDS)


def test_old_names_are_seen() -> None:
    tree = ast.parse("class Opener:\n    key_part: int\n\n    def f(self, rooms, *, Room): self._room = partial = 1")
    assert {name for name in defined(tree) if is_old(name)} == {"Opener", "key_part", "Room", "_room"}


def test_no_module_defines_an_old_name() -> None:
    found = {
        (module.name, name)
        for package in PACKAGES
        for module in modules(package)
        for name in defined(module.tree)
        if is_old(name)
    }
    assert found == OTHER_MEANING


def test_no_file_has_an_old_name() -> None:
    files = [Path(module.where) for package in PACKAGES for module in modules(package)]
    assert not [str(path) for path in files if is_old(path.stem)]
