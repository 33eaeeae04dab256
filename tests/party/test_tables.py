"""Tables on narrow consoles, and on those that do not speak UTF-8."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text

from he_party.tables import table
from tests.architecture.source import IMPORTABLE
from tests.architecture.test_start import PROGRAMS

NAMES = ["task", "hash", "openings", "epsilon of all", "why"]
ROWS = [
    ["demo", "0123456789ab", "12345678901", "91.8172635", "two of four key holders have answered"],
    ["[red]", "ab" * 6, "0", "0", "", ],
]  # fmt: skip


def shown(width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False).print(table(NAMES, ROWS, width))
    return out.getvalue()


@pytest.mark.parametrize("width", [200, 80, 60, 40, 30])
def test_every_figure_is_shown_in_one_piece(width: int) -> None:
    text = shown(width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in (word for row in ROWS for cell in row for word in cell.split()):
        assert word in text


def test_a_table_where_there_is_room_and_else_a_list() -> None:
    assert shown(200).splitlines()[0].split("  ")[0] == "task"
    assert "epsilon of all" in shown(200).splitlines()[0]
    assert ["task", "demo"] in [line.split() for line in shown(40).splitlines()]


def test_text_keeps_its_style() -> None:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True).print(table(["a"], [[Text("wrong", "red")]], 80))
    assert "\x1b[31mwrong" in out.getvalue()


CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
RUN = "import sys; from {module} import app; app(sys.argv[1:])"


def command(program: str, console: dict[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, IMPORTABLE)), "COLUMNS": "80"}
    run = RUN.format(module=PROGRAMS[program])
    return subprocess.run(
        [sys.executable, "-c", run, *words], env=environment | console, capture_output=True, check=False
    )


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("he-server", ("plan", "--help")),
        ("he-server", ("plan", "--parameters", "1000000", "--clients", "20")),
        ("he-bench", ("run", "--help")),
        ("he-client", ("train", "--help")),
    ],
)
def test_a_console_of_another_encoding_shows_what_it_can(console: str, program: str, words: tuple[str, ...]) -> None:
    done = command(program, CONSOLES[console], *words)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


@pytest.mark.parametrize("console", CONSOLES)
def test_a_refusal_that_quotes_what_the_console_has_no_letter_for(console: str) -> None:
    done = command("he-client", CONSOLES[console], "status", "--task", "名前", "--data-dir", "名前 [red]")
    assert done.returncode == 2
    (line,) = done.stderr.decode("latin-1").splitlines()
    assert line.startswith("refused ")
    assert "[red]/identity.key" in line
