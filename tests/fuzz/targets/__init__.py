"""Targets of coverage-guided fuzzing: one module for each binary format.

A target has `SEEDS`, good bytes to start from, and `run`, which raises for bytes that show a bug. A refusal is
the right answer to bad bytes and never leaves `run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

NAMES = ("frame", "residues", "seal", "kahe_key", "safetensors_file", "keyfile", "token", "message")
CORPUS = Path(__file__).parents[1] / "corpus"
"""A file for each target, `NAME.hex`: one input a line, in hex."""


class Target(Protocol):
    """What every module here is."""

    SEEDS: Sequence[bytes]

    @staticmethod
    def run(data: bytes) -> None: ...


def load(name: str) -> Target:
    return cast(Target, import_module(f"{__name__}.{name}"))


def corpus(name: str) -> list[bytes]:
    """The target's seeds, and the inputs that earlier runs found worth keeping."""
    return [*load(name).SEEDS, *kept(name)]


def kept(name: str) -> list[bytes]:
    """The inputs in the target's file."""
    path = CORPUS / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Add inputs to the target's file, each once, in order."""
    lines = sorted({data.hex() for data in (*kept(name), *inputs)})
    (CORPUS / f"{name}.hex").write_text("".join(f"{line}\n" for line in lines))
