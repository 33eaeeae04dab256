"""`he-server lab`: hands over to the program that makes and starts labs."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import typer

from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_SETTINGS

NEEDED = ("aiosqlite", "alembic", "asyncpg", "prometheus_client", "sqlalchemy", "structlog")
"""What server and key holders need beside what every program has."""


def lab(context: typer.Context) -> None:
    """A whole deployment in one folder, to try your own model with: `lab init`, then `lab up`; each has --help.

    A lab's folder has everybody's keys, and a server's process loads no code that handles those of others. So this is
    another program, in this one's place.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ProblemError(
            BAD_SETTINGS, f"a lab needs {', '.join(missing)}", expected="pip install 'hushsum[quickstart]'"
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "he_testing.lab", *context.args])  # noqa: S606
