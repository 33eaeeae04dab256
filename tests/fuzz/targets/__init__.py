"""Targets of coverage-guided fuzzing: one module for each binary format.

A target has `SEEDS`, good bytes to start from, and `run`, which raises for bytes that show a bug. A refusal is
the right answer to bad bytes and never leaves `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

NAMES = ("frame", "residues", "seal", "kahe_key", "safetensors_file", "keyfile", "token", "message")
CORPUS = Path(__file__).parents[1] / "corpus"


class Target(Protocol):
    """What every module here is."""

    SEEDS: Sequence[bytes]

    @staticmethod
    def run(data: bytes) -> None: ...


def load(name: str) -> Target:
    return cast(Target, import_module(f"{__name__}.{name}"))


def corpus(name: str) -> list[bytes]:
    """The target's seeds, and the inputs that earlier runs found worth keeping."""
    return [*load(name).SEEDS, *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
