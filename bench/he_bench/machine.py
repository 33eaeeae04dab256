"""The machine that figures are taken on: it belongs to every figure."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from he_bench.results import Machine

PACKAGES = ("hushsum", "numpy", "numba", "llvmlite", "cryptography", "aiohttp", "msgspec", "sqlalchemy", "tenseal")


def describe() -> Machine:
    """This machine, now."""
    return Machine(
        processor=_processor(),
        cores=available_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages={name: found for name in PACKAGES if (found := _version(name))},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2),
    )


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
