"""Where compiled kernels are kept, and compiling them before somebody waits for them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from he_protocol.arithmetic.kernel import Kernel, kernel_use

CACHE = "NUMBA_CACHE_DIR"
Steps = Iterable[tuple[str, Callable[[], None]]]
"""Names of profiles, and for each what calls every kernel that a party uses under it."""
Warm = Annotated[
    bool | None,
    typer.Option("--warm/--no-warm", help="Compile the kernels now, or at the first use; by default a terminal asks."),
]
_ONE_AT_A_TIME = threading.Lock()
_found: list[bool] = []


@dataclass(frozen=True)
class Warmed:
    """How many kernels came from the cache on disk, how many were compiled, and the seconds that both took."""

    loaded: int
    compiled: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.loaded} loaded from the cache, {self.compiled} compiled, {self.seconds:.1f} s"


def keep_kernels() -> None:
    """From now on kernels are kept in a temporary folder where numba finds no other."""
    Kernel.find_folder = staticmethod(temporary_folder)


def temporary_folder() -> bool:
    """Let `NUMBA_CACHE_DIR` name a folder that only this user can write; say so once. False: there is none.

    Processes that are started from now on take the same one.
    """
    with _ONE_AT_A_TIME:
        if not _found:
            import logging

            folder = _private_folder()
            _found.append(folder is not None)
            where = "memory, and compiled again by every process" if folder is None else folder
            if folder is not None:
                os.environ[CACHE] = folder
            log = logging.getLogger("he-party")
            log.warning("no folder for compiled kernels can be written: they are kept in %s. Set %s", where, CACHE)
        return _found[0]


def _private_folder() -> str | None:
    """What is loaded from there is run: a folder that somebody else could have made, or can write, will not do."""
    import stat
    import tempfile
    from pathlib import Path

    try:
        folder = Path(tempfile.gettempdir()) / f"hushsum-kernels-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return str(folder)
        return tempfile.mkdtemp(prefix="hushsum-kernels-")
    except OSError:
        return None


def warm(steps: Steps, progress: Callable[[str], None] = lambda text: None) -> Warmed:
    """Run all steps; `progress` hears of each."""
    begun, before = time.monotonic(), kernel_use()
    for name, call in steps:
        progress(f"kernels of {name}")
        call()
    after = kernel_use()
    return Warmed(after[0] - before[0], after[1] - before[1], time.monotonic() - begun)


def offer_to_warm(wanted: bool | None, steps: Callable[[], Steps]) -> None:
    """Compile the kernels of `steps` where that is wanted; None asks on a terminal, and elsewhere compiles nothing."""
    import sys

    if wanted is None:
        question = "Compile the kernels now? That takes up to a minute, once; otherwise the first use takes it."
        asked = sys.stdin.isatty() and sys.stderr.isatty()
        wanted = asked and typer.confirm(question, default=True, err=True)
    if wanted:
        done = warm(steps(), lambda text: typer.echo(text, err=True))
        typer.echo(f"kernels: {done}", err=True)
