"""docs/threat-model.md as data: its rows, and which line of a table says what."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.architecture.source import ROOT

TEXT = (ROOT / "docs" / "threat-model.md").read_text()
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[([^]]+)\])?`")
_PLACE = re.compile(r"`(\w[\w/]*\.py: \w+)`")


@dataclass(frozen=True)
class Row:
    """`places` as `path.py: name`, `tests` as pytest knows them."""

    attack: str
    places: tuple[str, ...]
    tests: tuple[str, ...]


def _row(line: str) -> Row:
    attack, _, where, test = line.strip("| ").split(" | ")
    tests = (match[0].strip("`") for match in TEST.finditer(test))
    return Row(attack, tuple(_PLACE.findall(where)), tuple(tests))


ROWS = tuple(
    _row(line) for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| attack", "| ---"))
)
