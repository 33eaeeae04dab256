"""The one decorator that compiles kernels: numba, without the GIL, cached on disk between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` in nopython mode, releasing the GIL; the signature stays the Python one."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))
