"""How a package hangs together: `python -m tests.architecture.graph [PACKAGES]` prints it.

A room is a module or a package directly in the package, an arrow an import from one to another, the depth the number of
rooms (or modules) on the longest way along arrows, a circle a set of them that all reach one another.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from tests.architecture.source import PACKAGES, imported, modules

Arrows = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Shape:
    """`rooms` and their arrows; `circles` are sets of more than one room, and `depth` counts such a set as one."""

    arrows: Arrows
    circles: tuple[frozenset[str], ...]
    depth: int

    @property
    def rooms(self) -> int:
        return len(self.arrows)

    @property
    def count(self) -> int:
        """Arrows in all."""
        return sum(map(len, self.arrows.values()))

    def __str__(self) -> str:
        circles = "; ".join(" <-> ".join(sorted(circle)) for circle in self.circles) or "none"
        return f"{self.rooms} rooms, depth {self.depth}, {self.count} arrows, circles: {circles}"


def module_arrows(package: str) -> Arrows:
    """Which modules of a package import which others of it, also inside functions; the package itself is left out."""
    known = {module.name for module in modules(package)} - {package}
    found: dict[str, frozenset[str]] = {}
    for module in modules(package):
        if module.name == package:
            continue
        names = imported(module)
        # `from a import b` names a module a.b, or something in a: only then a itself
        whole = {name for name in names if any(other.startswith(f"{name}.") and other in known for other in names)}
        found[module.name] = frozenset((names & known) - whole - {module.name})
    return found


def room_arrows(package: str) -> Arrows:
    """The same between what is directly in the package."""
    found: dict[str, set[str]] = {}
    for module, others in module_arrows(package).items():
        room = _room(module)
        found.setdefault(room, set()).update(_room(other) for other in others if _room(other) != room)
    return {room: frozenset(others) for room, others in found.items()}


def shape(arrows: Arrows) -> Shape:
    """Circles and depth (Tarjan 1972: sets that reach one another come out in an order without arrows back)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[frozenset[str]] = []

    def visit(room: str) -> None:
        number[room] = low[room] = len(number)
        stack.append(room)
        for other in sorted(arrows[room]):
            if other not in number:
                visit(other)
            if other in stack:
                low[room] = min(low[room], low[other])
        if low[room] == number[room]:
            at = stack.index(room)
            groups.append(frozenset(stack[at:]))
            del stack[at:]

    for room in sorted(arrows):
        if room not in number:
            visit(room)
    home = {room: group for group in groups for room in group}
    depth: dict[frozenset[str], int] = {}
    for group in groups:
        below = {home[other] for room in group for other in arrows[room]} - {group}
        depth[group] = 1 + max((depth[other] for other in below), default=0)
    return Shape(arrows, tuple(group for group in groups if len(group) > 1), max(depth.values(), default=0))


def _room(module: str) -> str:
    return module.split(".")[1]


if __name__ == "__main__":
    for name in sys.argv[1:] or PACKAGES:
        print(f"{name}: {shape(room_arrows(name))}")
        print(f"{' ' * len(name)}  in modules: {shape(module_arrows(name))}")
