"""From a lab to real keys: the steps that `he-server lab eject` writes, typed as they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from he_party.identity import Identity
from he_testing.eject import STEPS_FILE
from tests.integration.document import CLIENTS, HOLDERS, Terminal, commands
from tests.integration.test_lab import run
from tests.integration.test_proxies import free_port
from tests.support.certificates import self_signed
from tests.support.tunnel import Tunnel

HOST = "hub.example"
MODULE = """
import numpy as np

def fit(model):
    return {name: np.full(value.shape, 0.25, np.float32) for name, value in model.items()}
"""


@pytest.mark.long
async def test_the_steps_that_remain_lead_to_a_round(tmp_path: Path) -> None:
    save_file({"w": np.ones((2, 3), np.float32)}, tmp_path / "model.safetensors")
    made = run(tmp_path, "he-server", "lab", "init", "mylab", "--clients", "2", "--model", "model.safetensors")
    assert made.returncode == 0, made.stderr
    ejected = run(tmp_path, "he-server", "lab", "eject", "mylab", "--out", "real", "--url", f"https://{HOST}")
    assert ejected.returncode == 0, ejected.stderr
    real, port = tmp_path / "real", free_port()
    key, certificate = self_signed(HOST)
    (real / "key.pem").write_bytes(key)
    (real / "cert.pem").write_bytes(certificate)
    (real / "my.py").write_text(MODULE)
    project = real / "project.toml"
    project.write_text(project.read_text().replace('# tls_ca = "ca.pem"', 'tls_ca = "cert.pem"'))
    folders = {
        HOLDERS: [f"holder-{number}" for number in (1, 2, 3, 4)],
        CLIENTS: [f"client-{number:02}" for number in (1, 2)],
    }
    async with Tunnel(port) as tunnel:
        terminal = Terminal(real, {"HTTPS_PROXY": tunnel.url, "HUSHSUM_SERVER_PORT": str(port)}, port, folders)
        try:
            for command in commands((real / STEPS_FILE).read_text()):
                await terminal.type(command)
        finally:
            await terminal.stop()
    assert Identity.load(real / "client-01").key.public != Identity.load(tmp_path / "mylab" / "client-01").key.public
    assert load_file(real / "initial.safetensors")["w"].sum() == 6
    assert all("round 1 of 1: model version 1" in said for said in terminal.printed[-2:])
