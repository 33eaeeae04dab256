"""A report on disk: report.md, report.html, and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from he_bench.report import html, markdown
from he_bench.report.plots import plots
from he_bench.results import Report
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS


def write(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write everything; returns the files. Pictures of later reports of a kind are numbered."""
    pictures: dict[str, bytes] = {}
    for report in reports:
        for name, png in plots(report).items():
            earlier = sum(known == name or known.startswith(f"{name}-") for known in pictures)
            pictures[f"{name}-{earlier + 1}" if earlier else name] = png
    files = {folder / f"{name}.png": png for name, png in pictures.items()}
    files[folder / "report.md"] = markdown.page(reports, [f"{name}.png" for name in pictures]).encode()
    files[folder / "report.html"] = html.page(reports, pictures).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            path.write_bytes(data)
    except OSError as error:
        raise ProblemError(BAD_SETTINGS, f"cannot write to {folder}: {error.strerror}") from None
    return list(files)
