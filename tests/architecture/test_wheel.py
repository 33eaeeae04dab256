"""What a wheel puts on somebody's machine: names of ours, five programs, and what each needs said."""

from __future__ import annotations

import email
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.message import Message
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.architecture.source import FOLDERS, ROOT

PACKAGES = set(FOLDERS) - {"examples"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, as it lies here and without a network."""
    source = tmp_path_factory.mktemp("source") / "hushsum"
    copytree(ROOT, source, ignore=ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "shared", "demo-run"))
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, out], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = Path(out).glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def names(wheel: zipfile.ZipFile) -> list[str]:
    return [name for name in wheel.namelist() if ".dist-info/" not in name]


def described(wheel: zipfile.ZipFile, file: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(f".dist-info/{file}"))
    return wheel.read(name).decode()


def metadata(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_string(described(wheel, "METADATA"))


def test_only_names_of_ours_are_installed(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in names(wheel)} == PACKAGES
    assert all(name.startswith("he_") for name in PACKAGES)
    assert {name.partition("/")[0] for name in wheel.namelist()} - PACKAGES == {
        f"hushsum-{PROJECT['version']}.dist-info"
    }


def test_every_module_is_in_it(wheel: zipfile.ZipFile) -> None:
    wanted = {
        str(path.relative_to(folder))
        for package, folder in FOLDERS.items()
        if package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.is_file() and path.suffix in {".py", ".mako", ".typed"}
    }
    assert set(names(wheel)) == wanted


def test_every_package_is_typed(wheel: zipfile.ZipFile) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names(wheel))


def test_it_brings_five_programs(wheel: zipfile.ZipFile) -> None:
    parser = ConfigParser()
    parser.read_string(described(wheel, "entry_points.txt"))
    groups = {"hushsum.schemes", "hushsum.client_schemes", "hushsum.holder_schemes"}
    assert set(parser.sections()) == {"console_scripts"} | groups
    assert all(set(parser[group]) == {"ckks", "kahe"} for group in groups)
    assert set(parser["console_scripts"]) == {"he-server", "he-client", "he-holder", "he-authority", "he-bench"}


def test_it_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert found["Version"] == PROJECT["version"]
    assert found["Requires-Python"] == ">=3.11"
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Keywords"]
    assert "Typing :: Typed" in found.get_all("Classifier", [])
    assert {"server", "holder", "authority", "client", "quickstart"} <= set(found.get_all("Provides-Extra", []))


def test_nobody_gets_what_only_others_need(wheel: zipfile.ZipFile) -> None:
    """The base is what a client needs for scheme `kahe`; databases and TenSEAL come with the extras that use them."""
    requirements = [line.partition(";") for line in metadata(wheel).get_all("Requires-Dist", [])]
    base = {line.strip() for line, _, marker in requirements if "extra" not in marker}
    for heavy in (
        "torch",
        "tenseal",
        "zstandard",
        "dp-accounting",
        "scipy",
        "sqlalchemy",
        "alembic",
        "matplotlib",
        "prometheus",
    ):
        assert not [line for line in base if line.lower().startswith(heavy)]
    torch = {marker for line, _, marker in requirements if line.lower().startswith("torch")}
    assert torch == {' extra == "torch"'}
    tenseal = {marker for line, _, marker in requirements if line.lower().startswith(("tenseal", "zstandard"))}
    assert tenseal == {' extra == "ckks"'}
