"""Builds the site into `build/site/html`: stages the pages in `build/site/pages`, then runs Zensical over them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from docs.site.http import http_page, problems_page
from docs.site.pages import PACKAGES, decisions, reference, written
from he_party import __version__

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "site"
OUTSIDE = ("fonts.googleapis", "fonts.gstatic", "unpkg.com", "jsdelivr", "cdnjs", "googletagmanager")
"""Where a theme might fetch something from: pages must be whole without a network."""


def openapi() -> bytes:
    """The server's own description of its interface."""
    home = "he_server.http" if find_spec("he_server.http") else "he_server"
    document: bytes = import_module(f"{home}.openapi").document(import_module(f"{home}.routes").ROUTES, __version__)
    return document


def stage() -> None:
    """Write all pages and the configuration."""
    shutil.rmtree(BUILD, ignore_errors=True)
    described = openapi()
    document = json.loads(described)
    pages = written(ROOT)
    chosen = decisions(pages)
    modules, python = reference(ROOT)
    pages |= modules
    pages["http.md"] = http_page(document)
    pages["problems.md"] = problems_page(document)
    for name, text in pages.items():
        path = BUILD / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (BUILD / "pages" / "openapi.json").write_bytes(described)
    shutil.copy(Path(__file__).parent / "site.css", BUILD / "pages")
    config: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "mkdocs.yml").read_text())
    _fill(config["nav"], {"Decisions": chosen, "Python": python})
    handler = config["plugins"][1]["mkdocstrings"]["handlers"]["python"]
    handler["options"]["extensions"] = [str(Path(__file__).parent / "doctests.py")]
    handler["paths"] = [str(ROOT / folder) for folder in dict.fromkeys(PACKAGES.values())]
    (BUILD / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def _fill(nav: list[dict[str, Any]], made: dict[str, Any]) -> None:
    for entry in nav:
        for title, below in entry.items():
            if title in made:
                entry[title] = made[title]
            elif isinstance(below, list):
                _fill(below, made)


def reaching_out() -> list[str]:
    """Pages of the finished site that would fetch something from elsewhere."""
    pages = (BUILD / "html").rglob("*.html")
    return [f"{page}: {host}" for page in pages for host in OUTSIDE if host in page.read_text()]


def main() -> int:
    """Exit status: 0 if the site was built without a warning, and needs nobody else's servers."""
    stage()
    tool = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--clean",
        "--strict",
        "--config-file",
        str(BUILD / "mkdocs.yml"),
    ]
    status = subprocess.run(tool, check=False, cwd=BUILD).returncode  # noqa: S603 - our own words
    if status:
        return status
    if found := reaching_out():
        sys.stderr.write("\n".join(found[:20]) + "\n")
        return 1
    sys.stdout.write(f"{BUILD / 'html' / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
