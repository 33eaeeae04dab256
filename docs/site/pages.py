"""The pages of the site: what is written by hand, with links mended, and a page for every module."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

Nav: TypeAlias = list[dict[str, Any]]

ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie at the repository's top, and their names in the site."""
PACKAGES = {
    "he_client": ".",
    "he_testing": ".",
    "he_party": ".",
    "he_protocol": ".",
    "he_holder": "keys",
    "he_authority": "keys",
    "he_server": ".",
}
"""Packages with reference pages, in this order, and the folders that they are imported from."""
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A link to another file: its text, the file, and the heading in it."""


def written(root: Path) -> dict[str, str]:
    """The pages that are written by hand, by their names in the site."""
    found = {str(path.relative_to(root / "docs")): path for path in sorted((root / "docs").rglob("*.md"))}
    found |= {page: root / name for name, page in ROOT_PAGES.items()}
    pages = {str(path.relative_to(root)): page for page, path in found.items()}
    return {page: _linked(path.read_text(), path.relative_to(root), page, pages) for page, path in found.items()}


def _linked(text: str, source: Path, page: str, pages: dict[str, str]) -> str:
    """`text` with links between files of the repository as links between pages; what has no page is only named."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(source.parent / found[2])
        known = pages.get(target) or pages.get(f"{target}/README.md")
        if known is None:
            return found[1]
        return f"[{found[1]}]({'../' * page.count('/')}{known}{found[3] or ''})"

    return LINK.sub(link, text)


def decisions(pages: dict[str, str]) -> Nav:
    """The navigation of the decision records."""
    nav: Nav = [{"All": "adr/README.md"}]
    for page in sorted(pages):
        if re.match(r"adr/\d{4}-", page):
            number, title = pages[page].splitlines()[0].removeprefix("# ").split(". ", 1)
            nav.append({f"{number}. {title.replace('`', '')}": page})
    return nav


def modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    """Names and files of a package's public modules that hold something, the package itself first."""
    folder = root / PACKAGES[package] / package
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.with_suffix("").parts):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") for part in parts) and (path.parent == folder or _content(path)):
            yield ".".join(parts), path


def _content(path: Path) -> bool:
    """Whether there is more than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


def reference(root: Path) -> tuple[dict[str, str], Nav]:
    """A page for every module of the packages that are there, and their navigation."""
    pages: dict[str, str] = {}
    nav: Nav = []
    for package, folder in PACKAGES.items():
        if not (root / folder / package).is_dir():
            continue
        below: Nav = []
        for name, _ in modules(root, package):
            page = f"python/{name}.md"
            pages[page] = f"# {name}\n\n::: {name}\n"
            below.append({name.removeprefix(f"{package}."): page})
        nav.append({package: below})
    return pages, nav
