"""What a user names on a command line: an object of a file or a module of theirs."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

NAMED = "FILE.py:NAME or MODULE:NAME"


def load_named(name: str) -> Any:
    """The object that FILE.py:NAME or MODULE:NAME stands for; modules are looked for in the working directory, too.

    Raises `bad-settings`, also for whatever their code raises.
    """
    where, _, attribute = name.rpartition(":")
    file = Path(where).absolute()
    try:
        return getattr(_run(file) if file.suffix == ".py" else _module(where), attribute)
    except (Exception, SystemExit) as error:
        what = f"cannot import {name!r}: {type(error).__name__}: {error}{_line(error, file)}"
        raise ProblemError(BAD_SETTINGS, what, expected=NAMED) from None


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    return import_module(name)


def _run(file: Path) -> ModuleType:
    """The file as a module that is called what the file is: `random.py` hides no library."""
    sys.path.insert(0, str(file.parent))
    name = file.name
    spec = spec_from_file_location(name, file)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "so there is a loader"
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _line(error: BaseException, file: Path) -> str:
    """Where in the user's file it happened."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" ({file.name}, line {lines[-1]})" if lines else ""
