"""What the demo shows: a live table, a plot, and a JSON report."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from examples.har.training_rounds import CLIENT_STAGES, SERVER_STAGES, RoundResult
from he_protocol.task import Task

STAGES = CLIENT_STAGES + SERVER_STAGES
SHOWN = 12
"""Rows of the live table: the newest rounds."""


def table(task: Task, results: list[RoundResult]) -> Table:
    """The newest rounds as a table; seconds by stage."""
    config, encryption = task.config, task.config.encryption
    out = Table(
        title=f"{encryption.scheme}/{encryption.profile}: {task.parameters:,} parameters, "
        f"{config.rounds.max_clients} phones, key holders {task.committee} (threshold/holders/agreement);"
        " seconds by stage",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name in ("round", "phones", "eps", "acc", "B/param", *STAGES, "error"):
        out.add_column(name, justify="right", no_wrap=True)
    for row in results[-SHOWN:]:
        start = (str(row.number), str(row.participants), f"{row.epsilon:.2f}")
        if row.failure:
            out.add_row(*start, "failed", *[""] * (len(STAGES) + 2), style="red")
            continue
        stages = (f"{row.seconds[stage]:.2f}" for stage in STAGES)
        out.add_row(*start, f"{row.accuracy:.3f}", f"{row.bytes_per_parameter:.2f}", *stages, f"{row.max_abs_error:g}")
    return out


def write_json(path: Path, task: Task, results: list[RoundResult], total_seconds: float) -> dict[str, object]:
    """Write and return the report."""
    done = [row for row in results if not row.failure]
    config, encryption = task.config, task.config.encryption
    report: dict[str, object] = {
        "scheme": encryption.scheme,
        "profile": encryption.profile,
        "rounds": len(done),
        "failed_rounds": [{"round": row.number, "why": row.failure} for row in results if row.failure],
        "clients": config.rounds.max_clients,
        "committee": {
            "holders": len(config.committee.holders),
            "threshold": config.committee.threshold,
            "agreement": config.committee.agreement,
            "f": task.committee.colluders,
        },
        "parameters": task.parameters,
        "accuracy": done[-1].accuracy if done else 0.0,
        "epsilon": results[-1].epsilon if results else 0.0,
        "delta": config.privacy.delta,
        "noise_multiplier": config.privacy.noise_multiplier,
        "sampling_rate": config.privacy.sampling_rate,
        "bytes_per_parameter": float(np.mean([row.bytes_per_parameter for row in done])) if done else 0.0,
        "seconds_per_round": {
            stage: round(float(np.median([row.seconds[stage] for row in done])), 4) if done else 0.0 for stage in STAGES
        },
        "max_abs_error_vs_plain_sum": max((row.max_abs_error for row in done), default=0.0),
        "accuracy_by_round": [row.accuracy for row in done],
        "epsilon_by_round": [row.epsilon for row in done],
        "total_seconds": round(total_seconds, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report


def plot(path: Path, task: Task, results: list[RoundResult]) -> None:
    """Accuracy on the unseen people and epsilon, by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    done = [row for row in results if not row.failure]
    rounds = range(1, len(done) + 1)
    figure, left = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    right = left.twinx()
    (line,) = left.plot(rounds, [row.accuracy for row in done], color="tab:blue", label="accuracy on unseen people")
    (other,) = right.plot(rounds, [row.epsilon for row in done], color="tab:orange", linestyle="--", label="epsilon")
    left.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    right.set(ylabel=f"epsilon at delta = {task.config.privacy.delta:g}")
    right.set_ylim(bottom=0)
    left.legend(handles=[line, other], loc="lower right")
    phones, scheme = task.config.rounds.max_clients, task.config.encryption.scheme
    left.set_title(f"{phones} phones, scheme {scheme}, record-level privacy")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
