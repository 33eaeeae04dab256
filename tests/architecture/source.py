"""The project's own source, parsed once."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "he_protocol": ROOT,
    "he_party": ROOT,
    "he_client": ROOT,
    "he_authority": ROOT / "keys",
    "he_holder": ROOT / "keys",
    "he_server": ROOT,
    "he_bench": ROOT / "bench",
    "he_testing": ROOT,
    "he_migrations": ROOT / "migrations",
    "examples": ROOT,
}
"""Every package, and the folder that it lies in."""
PACKAGES = tuple(FOLDERS)
SHIPPED = ("he_protocol", "he_party", "he_client", "he_authority", "he_holder", "he_server")
IMPORTABLE = tuple(map(str, dict.fromkeys(FOLDERS.values())))
"""What a Python path needs to find them in a checkout."""


@dataclass(frozen=True)
class Module:
    """One file of the project; `name` is its dotted name."""

    path: Path
    name: str
    text: str
    tree: ast.Module

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def modules(package: str) -> tuple[Module, ...]:
    """Every module of a package, by path."""
    found = []
    for path in sorted((FOLDERS[package] / package).rglob("*.py")):
        parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Module(path, name, text, ast.parse(text)))
    assert found, package
    return tuple(found)


def imported(module: Module) -> set[str]:
    """Dotted names that a module imports anywhere in it, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.where}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def identifiers(module: Module) -> set[str]:
    """Every name, attribute, argument, keyword and imported name in a module."""
    names: set[str] = set()
    for node in ast.walk(module.tree):
        match node:
            case ast.Name():
                names.add(node.id)
            case ast.Attribute():
                names.add(node.attr)
            case ast.arg():
                names.add(node.arg)
            case ast.keyword():
                names.add(node.arg or "")
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.alias():
                names |= {*node.name.split("."), node.asname or ""}
    return names


def offenders(looked_at: Iterable[Module], found: Callable[[Module], set[str]]) -> dict[str, set[str]]:
    """What each module has that a rule forbids, by the module's name; those that have nothing are left out."""
    return {module.name: wrong for module in looked_at if (wrong := found(module))}
