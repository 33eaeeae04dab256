"""What a program loads before it is told what to do, and what a package loads when it is imported."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import he_client
import he_party
from he_protocol.version import PROTOCOL
from tests.architecture.source import IMPORTABLE, modules

PROGRAMS = {
    "he-server": "he_server.cli.main",
    "he-client": "he_client.cli",
    "he-holder": "he_holder.cli.main",
    "he-authority": "he_authority.cli",
    "he-bench": "he_bench.cli",
}
HEAVY = {
    "aiohttp", "aiosqlite", "alembic", "asyncpg", "cryptography", "dp_accounting", "joserfc", "llvmlite", "matplotlib",
    "numba", "numpy", "prometheus_client", "pydantic_settings", "safetensors", "scipy", "sqlalchemy",
    "structlog", "tenacity", "tenseal", "torch", "zstandard",
}  # fmt: skip
"""pydantic is not among them: typer itself reads parameters with it."""
START_SECONDS = 0.4
"""Of processor time, so that what else the machine does counts for little."""

LOADED = """
import sys
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
HELP = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from {module} import app

def words(command, before):
    yield before
    for name, found in getattr(command, "commands", {{}}).items():
        yield from words(found, [*before, name])

asked = list(words(get_command(app), []))
for each in asked:
    done = CliRunner().invoke(app, [*each, "--help"])
    assert done.exit_code == 0 and "Usage" in done.output, (each, done.output)
assert len(asked) > 4
"""
START = "import sys; sys.argv[0] = {name!r}; from {module} import app; app()"


def run(
    code: str, *words: str, check: bool = True, env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTABLE)} | dict(env),
        capture_output=True,
        text=True,
        check=check,
    )


def loaded(code: str) -> set[str]:
    """Top-level names of all modules that a program has loaded."""
    return set(run(code + LOADED).stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(("name", "module"), PROGRAMS.items())
def test_no_help_loads_what_only_work_needs(name: str, module: str) -> None:
    """All commands of a program in one process: what one of them loaded would be seen."""
    found = loaded(HELP.format(module=module))
    assert module.partition(".")[0] in found
    assert not found & HEAVY


@pytest.mark.parametrize(("name", "module"), PROGRAMS.items())
def test_every_program_says_its_version_and_completes(name: str, module: str) -> None:
    program = START.format(name=name, module=module)
    assert run(program, "--version").stdout == f"{name} {he_party.__version__}, protocol {PROTOCOL}\n"
    variables = {f"_{name.upper().replace('-', '_')}_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    words = run(program, env=variables | {"COMP_WORDS": f"{name} "}).stdout.split()
    assert {"he-bench": "report"}.get(name, "init") in words


def test_the_release_stands_in_one_place() -> None:
    """In pyproject.toml: what is installed tells."""
    assert he_client.__version__ == he_party.__version__
    with pytest.raises(AttributeError):
        _ = he_party.nothing


@pytest.mark.parametrize(("name", "module"), PROGRAMS.items())
def test_help_comes_at_once(name: str, module: str) -> None:
    """The least of some runs: a busy machine makes single ones slower."""
    least = START_SECONDS
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(START.format(name=name, module=module), "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if least < START_SECONDS:
            return
    pytest.fail(f"{name} --help takes {least:.2f} s and more")


@pytest.mark.parametrize(
    "package", ["he_protocol", "he_party", "he_client", "he_server", "he_holder", "he_authority", "he_migrations"]
)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    found = loaded(f"import {package}")
    assert package in found
    assert not found & HEAVY


@pytest.mark.parametrize("package", ["he_protocol", "he_party", "he_client", "he_server", "he_holder", "he_authority"])
def test_torch_and_tenseal_load_with_no_module(package: str) -> None:
    """But with the training helper, which is left out here, and when a ciphertext is made."""
    names = [module.name for module in modules(package)]
    chosen = [name for name in names if not name.startswith("he_client.training") and not name.endswith("__main__")]
    found = loaded(f"import importlib\nfor name in {chosen!r}:\n    importlib.import_module(name)\n")
    assert package in found
    assert not found & {"torch", "tenseal"}


def test_the_client_gives_its_names_when_they_are_asked_for() -> None:
    assert set(he_client.__all__) <= set(dir(he_client))
    assert all(getattr(he_client, name) for name in he_client.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = he_client.nothing
    assert "aiohttp" in loaded("from he_client import HushSumClient")


@pytest.fixture
def read_only(tmp_path: Path) -> dict[str, str]:
    """A copy of the packages beside which nothing can be written, and a home that does not exist: for root, too."""
    site = tmp_path / "site"
    for package in ("he_protocol", "he_party"):
        shutil.copytree(Path(IMPORTABLE[0]) / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in site.rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("no folder")
    (tmp_path / "temporary").mkdir()
    home = {"HOME": "/dev/null/home", "XDG_CACHE_HOME": "/dev/null/cache", "NUMBA_CACHE_DIR": ""}
    return {**home, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "temporary")}


KERNELS = """
import he_party
from he_protocol.arithmetic.kernel import kernel_use
from he_protocol.privacy.quantise import l2_norm, quantise
import numpy as np
l2_norm(np.zeros(4, np.float32))
quantise(np.zeros(4, np.float32), 1.0, 1.0, np.zeros(4, np.uint32))
print(*kernel_use())
"""


def test_a_cache_that_cannot_be_written_gives_way_to_a_private_temporary_one(
    tmp_path: Path, read_only: dict[str, str]
) -> None:
    first = run(KERNELS, env=read_only)
    folder = tmp_path / "temporary" / f"hushsum-kernels-{os.getuid()}"
    assert first.stdout.split() == ["0", "2"]
    assert [str(folder) in line for line in first.stderr.splitlines()] == [True]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run(KERNELS, env=read_only).stdout.split() == ["2", "0"]


def test_a_temporary_folder_that_others_can_write_is_not_used(tmp_path: Path, read_only: dict[str, str]) -> None:
    """What lies there would be run. A link is somebody else's choice, too."""
    folder = tmp_path / "temporary" / f"hushsum-kernels-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert run(KERNELS, env=read_only).stdout.split() == ["0", "2"]
    assert not any(folder.iterdir())
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert run(KERNELS, env=read_only).stdout.split() == ["0", "2"]
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.long
def test_without_any_folder_kernels_are_compiled_in_memory(read_only: dict[str, str]) -> None:
    done = run(KERNELS, env=read_only | {"TMPDIR": "/dev/null"}, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
