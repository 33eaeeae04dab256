"""Text files that people edit, paste and carry from one machine to the other."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

from he_protocol.errors import ProblemError
from he_protocol.problems import ProblemType

TEXT_BYTES = 8 * 1024 * 1024
"""More than the largest signed task."""


def read_text(path: Path, problem: ProblemType) -> str:
    """The text of a file, without what stands around it: blanks, and the byte order mark of some editors.

    Raises `problem`, naming the file, for one that cannot be read, is no UTF-8 or is too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES + 1)
    except (OSError, ValueError) as error:  # the latter for a name that no file can have
        raise ProblemError(problem, f"cannot read {path}: {reason(error)}") from None
    if len(data) > TEXT_BYTES:
        raise ProblemError(problem, f"{path} is no such file", expected=f"at most {TEXT_BYTES} bytes of text")
    return as_text(data, path, problem)


def as_text(data: bytes, path: Path, problem: ProblemType) -> str:
    """As above, for the bytes of a file."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise ProblemError(problem, f"{path} is UTF-16 or binary", expected="UTF-8: save it as that")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ProblemError(problem, f"{path} is not UTF-8 at byte {error.start}", expected="UTF-8") from None


def read_toml(path: Path, problem: ProblemType) -> dict[str, Any]:
    """The tables of a TOML file. Raises `problem`, naming the file."""
    try:
        return tomllib.loads(read_text(path, problem))
    except (ValueError, RecursionError) as error:
        raise ProblemError(problem, f"{path}: {error}") from None


def reason(error: Exception) -> str:
    """Why something could not be read or written, without the name that the message has anyway."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
