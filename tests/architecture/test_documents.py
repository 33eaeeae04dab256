"""The documents agree with the code and with each other, as far as a program can tell."""

from __future__ import annotations

import ast
import json
import posixpath
import re
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import get_args

import msgspec

import he_protocol
from docs.problems import PAGE as PROBLEMS_PAGE
from docs.problems import page
from docs.site.__main__ import openapi
from docs.site.http import http_page, problems_page
from docs.site.pages import LINK
from he_protocol.problems import PROBLEMS, Family, Retry
from he_protocol.version import PROTOCOL
from tests.architecture.source import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECORDS = sorted((ROOT / "docs" / "adr").glob("0*.md"))
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
STATUS = re.compile(r"- Status: (proposed|accepted|superseded by|rejected)")


def anchors(path: Path) -> set[str]:
    """What GitHub and the site make of a page's headings."""
    titles = HEADING.findall(FENCE.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    assert PAGES
    broken = []
    for written in PAGES:
        for _, target, heading in LINK.findall(FENCE.sub("", written.read_text())):
            found = Path(posixpath.normpath(written.parent / target))
            if not found.exists() or (heading and heading.removeprefix("#") not in anchors(found)):
                broken.append(f"{written.relative_to(ROOT)}: {target}{heading}")
    assert broken == []


def test_every_decision_is_in_the_index_with_its_date_and_status() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d+)\]\((\S+)\) \| (.+?) \| (\S+) \| (.+) \|$", index, re.MULTILINE)
    assert [name for _, name, *_ in rows] == [record.name for record in RECORDS]
    for number, name, title, date, status in rows:
        lines = (ROOT / "docs" / "adr" / name).read_text().splitlines()
        assert lines[0] == f"# {number}. {title}"
        assert int(name[:4]) == int(number)
        assert lines[2] == f"- Date: {date}"
        assert STATUS.match(lines[3])
        assert lines[3].removeprefix("- Status: ").startswith(status)


def structs() -> set[str]:
    """The classes of all messages and documents that travel or lie on a disk: what he_protocol defines."""
    modules: list[ModuleType] = [
        import_module(module.name) for module in walk_packages(he_protocol.__path__, "he_protocol.")
    ]
    return {
        name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
    }


NO_WORDS = {"Message", "Document", "ProblemDocument"}
"""Bases, and the RFC's own."""


def test_the_glossary_has_every_word_of_the_interface() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    words = {word for span in re.findall(r"`([^`]+)`", glossary) for word in re.split(r"[^\w.-]+", span)}
    segments = {part for path in json.loads(openapi())["paths"] for part in path.split("/") if part and part[0] != "{"}
    wanted = structs() - NO_WORDS | segments - {"v1"}
    assert len(wanted) > 50
    assert wanted - words == set()


def test_sections_that_code_cites_are_in_the_design() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    have = {int(number) for number in re.findall(r"^## (\d+)\. ", design, re.MULTILINE)}
    cited = {
        int(number)
        for folder in ROOT.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and folder.name != "build"
        for path in folder.rglob("*.py")
        for number in re.findall(r"[Ss]ection (\d+) of the\s+design", path.read_text())
    }
    assert cited
    assert cited <= have
    assert have == set(range(1, max(have) + 1)), "numbers stay"


def revision(tree: str) -> str:
    """The newest revision of one tree of migrations: the one that no other follows."""
    ids, before = set[str](), set[str]()
    for path in (ROOT / "migrations").rglob(f"{tree}/versions/0*.py"):
        values = {
            target.id: ast.literal_eval(node.value)
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        ids.add(values["revision"])
        before.add(values["down_revision"])
    (newest,) = ids - before
    return newest


def test_the_last_line_of_the_releases_is_what_the_code_is() -> None:
    text = (ROOT / "docs" / "releasing.md").read_text()
    table = text.partition("## Which release speaks what")[2].partition("\n## ")[0]
    last = [row for row in table.splitlines() if row.startswith("|")][-1]
    release, protocol, server, ledger, _ = (cell.strip() for cell in last.strip("|").split("|"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert release.split()[0] == declared
    assert (protocol, server, ledger) == (str(PROTOCOL), revision("server"), revision("ledger"))


def test_the_site_has_every_operation_and_every_problem() -> None:
    document = json.loads(openapi())
    http = http_page(document)
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"### `{method.upper()} {path}`" in http
    for name in document["components"]["schemas"]:
        assert f"### {name} " in http
    problems = problems_page(document)
    for slug in PROBLEMS:
        assert f"`{slug}`" in problems
    linked = set(re.findall(r"problems\.md#([\w-]+)", http))
    assert linked <= PROBLEMS.keys()
    assert {"not-found", "stale-update", "wrong-share"} <= linked


def test_the_page_of_problems_is_the_table_of_types() -> None:
    assert PROBLEMS_PAGE.read_text() == page(), "run `python -m docs.problems`"


def test_the_interface_tells_families_and_when_to_try_again() -> None:
    document = json.loads(openapi())
    told = {
        (int(status), *problem.values())
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        for problem in answer.get("x-problems", ())
    }
    types = {(p.status, p.urn, p.family, p.retry, p.what_to_do) for p in PROBLEMS.values()}
    assert told <= types
    assert len(told) > 40
    schema = document["components"]["schemas"]["ProblemDocument"]["properties"]
    assert schema["retry"]["enum"] == list(get_args(Retry))
    assert schema["family"]["enum"] == list(get_args(Family))
