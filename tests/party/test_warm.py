"""Warming compiles what a round then uses: nothing else is compiled while somebody waits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.architecture.source import IMPORTABLE

PROGRAM = """
import asyncio, sys
from importlib import import_module
from he_bench.cases import load_case
from he_bench.results import Point
from he_party.kernels import warm
from he_protocol.arithmetic.kernel import kernel_use

party, *cases = sys.argv[1:]
warm(import_module(party).kernel_steps())

async def main():
    for case in cases:
        for profile in ("kahe-30", "kahe-20", "kahe-18", "kahe-16", "kahe-14", "ckks-8192"):
            if profile.startswith("ckks") and case.startswith("encrypt"):
                continue  # encrypts in other processes, with TenSEAL
            before = sum(kernel_use())
            async with load_case(case)(Point(case, profile, 100, 2, 1)) as job:
                prepared = sum(kernel_use())
                await job.run()
                others = prepared - before if party == "he_client.schemes" else 0
                print(case, profile, others, sum(kernel_use()) - prepared)

asyncio.run(main())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("party", "cases"),
    [
        ("he_client.schemes", ("encrypt_noise", "encrypt")),
        ("he_holder.schemes", ("share",)),
        ("he_server.services.kernels", ("fold", "open")),
    ],
)
def test_a_round_after_warming_compiles_nothing(party: str, cases: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, party, *cases],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(IMPORTABLE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3
    assert [line for line in lines if not line.endswith(" 0 0")] == []
