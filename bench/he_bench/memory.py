"""Peak memory of processes above what they hold now, from Linux's high-water mark.

`getrusage` would not do: its mark cannot be lowered, so it remembers compilers and warm-ups, and a
child inherits its parent's.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Sequence
from pathlib import Path

RESET_HIGH_WATER_MARK = "5"
"""proc(5), /proc/pid/clear_refs."""


class PeakMemory:
    """Starts at zero when made; `above()` tells the peak since then, summed over the processes.

    >>> watch = PeakMemory([os.getpid()])  # doctest: +SKIP
    >>> work()                             # doctest: +SKIP
    >>> watch.above()                      # doctest: +SKIP
    16777216
    """

    def __init__(self, pids: Sequence[int]) -> None:
        _give_back()
        self._before = {pid: before for pid in pids if (before := _reset(pid)) is not None}

    def above(self) -> int | None:
        """Bytes, or None where the system does not tell."""
        if not self._before:
            return None
        return sum(max(0, _mark(pid) - before) for pid, before in self._before.items())


def peak_memory(pids: Sequence[int]) -> int | None:
    """The most that these processes ever held, bytes, summed; None where the system does not tell."""
    try:
        return sum(_mark(pid) for pid in pids)
    except OSError:
        return None


def _reset(pid: int) -> int | None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(RESET_HIGH_WATER_MARK)
        return _mark(pid)
    except OSError:
        return None


def _mark(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _give_back() -> None:
    """Return freed memory to the system: what an allocator keeps would hide what the work needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
