"""Bounding the cores of a process. Imports nothing but the standard library: foreign interpreters use it too."""

from __future__ import annotations

import os


def restrict(cores: int) -> None:
    """Keep this process, and those that it will start, on `cores` of its cores.

    Call it before libraries that size their thread pools are imported.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
