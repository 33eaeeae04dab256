"""Pictures, as PNG bytes. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from he_bench.cases import DESCRIPTIONS
from he_bench.results import Comparison, LoadRun, Measurement, PeerResult, Report, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 110


def plots(report: Report) -> dict[str, bytes]:
    """PNG pictures of one report, by name without suffix."""
    if isinstance(report, LoadRun):
        return {}
    figures = _peers(report) if isinstance(report, Comparison) else _run(report)
    return {name: _png(figure) for name, figure in figures.items()}


def _run(run: Run) -> dict[str, Figure]:
    """One figure for every case: ns per parameter over d, one line for each profile, clients and cores."""
    figures = {}
    for case, description in DESCRIPTIONS.items():
        lines = _lines([r for r in run.results if isinstance(r, Measurement) and r.point.case == case])
        if lines:
            figures[f"case-{case}"] = _draw_lines(f"{case}: {description}", lines)
    return figures


def _lines(results: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    lines: dict[str, list[Measurement]] = {}
    for result in sorted(results, key=lambda result: result.point.parameters):
        point = result.point
        cores = f"{point.cores} core{'s' if point.cores > 1 else ''}"
        lines.setdefault(f"{point.profile}, {point.clients} clients, {cores}", []).append(result)
    return lines


def _draw_lines(title: str, lines: Mapping[str, Sequence[Measurement]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="parameters", ylabel="ns per parameter")
    for label, results in lines.items():
        scale = [1e9 / result.work for result in results]
        median = [result.ns_per_parameter for result in results]
        low = [m - r.seconds.minimum * s for m, r, s in zip(median, results, scale, strict=True)]
        high = [r.seconds.maximum * s - m for m, r, s in zip(median, results, scale, strict=True)]
        sizes = [result.point.parameters for result in results]
        axes.errorbar(sizes, median, yerr=(low, high), marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _peers(comparison: Comparison) -> dict[str, Figure]:
    """Client seconds, upload and server seconds of every peer, side by side."""
    from matplotlib.figure import Figure

    results = [result for result in comparison.results if isinstance(result, PeerResult)]
    if not results:
        return {}
    names = [result.peer for result in results]
    colours = ["tab:blue" if name == comparison.reference else "tab:gray" for name in names]
    panels = {
        "client, seconds per update": [result.send.median for result in results],
        "upload, bytes per parameter": [result.traffic / comparison.parameters for result in results],
        "server, seconds per update": [result.receive.median for result in results],
    }
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(results)), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize="small")
        axes.set_xscale("log")
        axes.margins(x=0.3)
        axes.set_title(title, fontsize="medium")
        axes.invert_yaxis()
    figure.axes[0].set_ylim(len(names) - 0.5, -0.5)
    return {"peers": figure}


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH)
    return out.getvalue()
