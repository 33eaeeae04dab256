"""The shape of the code: pure where it says so, small, layered, and random only where secrets may be.

One test for each rule: it looks at every module, and its failure lists all that break the rule, with what they break.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import PACKAGES, ROOT, SHIPPED, Module, identifiers, imported, modules, offenders

EVERYTHING = [module for package in PACKAGES for module in modules(package)]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60

IMPURE_MODULES = frozenset(
    {"aiohttp", "asyncio", "socket", "ssl", "http", "urllib", "subprocess", "threading", "multiprocessing", "logging",
     "structlog", "sqlite3", "sqlalchemy", "tempfile", "shutil", "time", "datetime", "signal", "select"}
)  # fmt: skip
DISK = frozenset({"os", "pathlib", "io"})
CLOCK_OR_DISK_CALLS = frozenset(
    {"open", "read_text", "read_bytes", "write_text", "write_bytes", "print", "input", "now", "today", "utcnow",
     "monotonic", "perf_counter", "sleep", "getenv", "environ"}
)  # fmt: skip


def test_the_parser_sees_the_whole_project() -> None:
    names = {module.name for module in EVERYTHING}
    assert {
        "he_protocol.task",
        "he_client.client",
        "he_server.jobs.worker",
        "he_holder.rules",
        "examples.har.training_rounds",
    } <= names


def test_the_public_half_does_no_io_and_reads_no_clock() -> None:
    def impure(module: Module) -> set[str]:
        roots = {name.split(".")[0] for name in imported(module)}
        calls = {
            node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
        }
        return roots & (IMPURE_MODULES | DISK) | calls & CLOCK_OR_DISK_CALLS

    assert not offenders(modules("he_protocol"), impure)


def test_files_are_short() -> None:
    long = {module.where: n for module in EVERYTHING if (n := len(module.text.splitlines())) > LONGEST_FILE}
    assert not long, f"longer than {LONGEST_FILE} lines, so split them by what they do: {long}"


def test_functions_are_short() -> None:
    """Docstrings count; whatever is longer than a screen is two things."""
    long = [
        f"{module.where}: {node.name} has {size}"
        for module in EVERYTHING
        for node, size in functions(module)
        if size > LONGEST_FUNCTION
    ]
    assert not long, f"longer than {LONGEST_FUNCTION} lines: {'; '.join(long)}"


def functions(module: Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def test_names_say_what_lives_there() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "misc", "base", "tools"}
    assert not offenders(EVERYTHING, lambda module: {module.path.stem} & empty)


def test_no_random_numbers_but_the_operating_systems() -> None:
    """Whatever is drawn comes from `secrets`, `os.urandom` or `cryptography`, and is named so."""

    def drawn(module: Module) -> set[str]:
        names = imported(module)
        attributes = {
            ast.unparse(node)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Attribute) and node.attr != "urandom"
        }
        return (
            names & {"random"}
            | {name for name in names if name.startswith(("random.", "numpy.random", "torch.random"))}
            | {name for name in attributes if name.startswith(("np.random", "numpy.random", "random."))}
            | {name for name in attributes if name.startswith("torch.") and name.split(".")[1].startswith("rand")}
            | identifiers(module) & {"default_rng", "RandomState", "manual_seed", "getrandbits", "shuffle"}
        )

    assert not offenders([module for package in SHIPPED for module in modules(package)], drawn)


def test_the_secret_generators_are_used_where_secrets_are_made() -> None:
    """The test above is about places that draw at all."""
    users = {
        module.name
        for package in SHIPPED
        for module in modules(package)
        if {"secrets", "os.urandom"}
        & {*imported(module), *(ast.unparse(n) for n in ast.walk(module.tree) if isinstance(n, ast.Attribute))}
    }
    assert {"he_client.quantise", "he_client.client", "he_party.http_transport", "he_holder.ceremony.messages"} <= users


def test_the_public_half_draws_nothing_at_all() -> None:
    """Randomness is passed in: `words`, seeds, keys. Only a fresh signing key is made here, by the JOSE library."""
    assert not offenders(
        modules("he_protocol"),
        lambda module: {"secrets", "random"} & imported(module) | {"urandom"} & identifiers(module),
    )


def test_profiles_for_tests_are_for_tests() -> None:
    allowing = {
        module.name
        for package in PACKAGES
        for module in modules(package)
        if {"insecure_profiles", "_INSECURE"} & identifiers(module)
    }
    assert allowing == {"he_protocol.schemes.registry"}


def test_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "Contracts: 0 kept" not in done.stdout
