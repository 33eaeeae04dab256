"""The one decorator that compiles kernels: numba, without the GIL, cached on disk between processes.

numba takes a good part of a second to import, which a program that calls no kernel does not wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, ClassVar, Generic, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class Kernel(Generic[F]):
    """A function that numba compiles when it is called first, or when a kernel that calls it is compiled."""

    find_folder: ClassVar[Callable[[], bool]] = staticmethod(lambda: False)
    """Called when numba finds no folder to cache in. True: `NUMBA_CACHE_DIR` names one now; else nothing is cached.

    `he_party.kernels` puts its own here: nothing in this package touches a disk.
    """
    _made: ClassVar[list[Any]] = []

    def __init__(self, function: F) -> None:
        update_wrapper(self, function)
        self.py_func = function
        self._compiled: Any = None

    def __call__(self, *args: Any) -> Any:
        return (self._compiled or self._compile())(*args)

    @property
    def _numba_type_(self) -> Any:
        """What numba sees where another kernel calls this one."""
        return (self._compiled or self._compile())._numba_type_

    def _compile(self) -> Any:
        import numba

        try:
            made = numba.njit(cache=True, nogil=True)(self.py_func)
        except RuntimeError:  # there is no folder that this process can write
            made = self._without_folder(numba)
        # Of several threads that come here at once all take the same one; nothing is compiled yet.
        self._compiled = self.__dict__.setdefault("made", made)
        if self._compiled is made:
            self._made.append(made)
        return self._compiled

    def _without_folder(self, numba: Any) -> Any:
        found = Kernel.find_folder()
        numba.config.reload_config()
        return numba.njit(cache=found, nogil=True)(self.py_func)


def kernel(function: F) -> F:
    """Compile `function` in nopython mode, releasing the GIL; the signature stays the Python one."""
    return cast(F, Kernel(function))


def kernel_use() -> tuple[int, int]:
    """How many kernels this process has loaded from the cache on disk, and how many it has compiled itself."""
    stats = [made.stats for made in Kernel._made]
    return (
        sum(sum(each.cache_hits.values()) for each in stats),
        sum(sum(each.cache_misses.values()) for each in stats),
    )
