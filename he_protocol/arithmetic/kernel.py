"""The one decorator that compiles kernels: numba, without the GIL, cached on disk between processes.

numba takes a good part of a second to import, which a program that calls no kernel does not wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class _Kernel(Generic[F]):
    """A function that numba compiles when it is called first, or when a kernel that calls it is compiled."""

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

        # Of several threads that come here at once all take the same one; nothing is compiled yet.
        self._compiled = self.__dict__.setdefault("made", numba.njit(cache=True, nogil=True)(self.py_func))
        return self._compiled


def kernel(function: F) -> F:
    """Compile `function` in nopython mode, releasing the GIL; the signature stays the Python one."""
    return cast(F, _Kernel(function))
