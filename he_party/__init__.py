"""What clients, key holders, the authority and the server share as parties: files, keys, HTTP, settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from he_party.kernels import keep_kernels

if TYPE_CHECKING:
    __version__: str

keep_kernels()


def __getattr__(name: str) -> Any:
    """`__version__`, of the installed package: read when it is asked for, because that alone takes a while."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("hushsum")
        except PackageNotFoundError:  # a checkout that was never installed
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
