"""`he-authority` runs on a machine without a network: no command of it loads what others need for theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from he_holder.keyring import new_holder
from he_party.enrolling import create
from tests.architecture.source import IMPORTABLE
from tests.support.holders import PLAN_FILE

ABSENT = {
    "aiohttp", "sqlalchemy", "alembic", "numba", "llvmlite", "torch", "tenseal", "he_client", "he_holder", "he_server",
}  # fmt: skip
PROGRAM = """
import sys
from he_authority.cli import app
try:
    app(sys.argv[1:])
finally:
    print("loaded", *sorted(name for name in sys.modules if "." not in name))
"""


def loaded(folder: Path, *words: str) -> set[str]:
    """What one command has loaded when it ends, and ends well."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTABLE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("loaded ")
    return set(line.split()[1:])


@pytest.mark.parametrize(
    ("scheme", "profile"), [("kahe", "kahe-30"), pytest.param("ckks", "ckks-8192", marks=pytest.mark.long)]
)
def test_no_command_loads_what_it_does_not_need(tmp_path: Path, scheme: str, profile: str) -> None:
    now = time.time()
    for number in (1, 2):
        new_holder(tmp_path / f"holder-{number}", "holder", now)
    create(tmp_path / "server", "server", "server", now)
    create(tmp_path / "phone", "phone", "client", now)
    (tmp_path / "plan.toml").write_text(PLAN_FILE.format(scheme=scheme, profile=profile))
    save_file({"w": np.zeros((5, 2), np.float32)}, tmp_path / "model.safetensors")
    model = ("--model", "model.safetensors")
    commands: list[tuple[str, ...]] = [
        ("--help",),
        ("init",),
        ("invite", "--out", "codes.txt"),
        ("list",),
        *(
            ("enroll", f"{name}/enroll-request.jws", "--role", role, "--out", f"{name}.jws", "--new-key")
            for name, role in (
                ("holder-1", "holder"),
                ("holder-2", "holder"),
                ("server", "server"),
                ("phone", "client"),
            )
        ),
        (
            "task",
            "sign",
            "plan.toml",
            *model,
            "--server",
            "server.jws",
            "--holder",
            "holder-1.jws",
            "--out",
            "task.jws",
        ),
        ("task", "next", "task.jws", *model, "--holder", "holder-2.jws", "--out", "next.jws"),
        ("revoke", "--credential", "phone.jws", "--out", "1.jws"),
    ]
    for command in commands:
        found = loaded(tmp_path, *command)
        assert "he_authority" in found
        assert not found & ABSENT, command
