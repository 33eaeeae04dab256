"""Scheme `kahe` at size: the error of a mean of a thousand clients, and the memory that sealing takes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from math import hypot, sqrt

import numpy as np

from he_client.encode import Encoder
from he_client.schemes.kahe import KaheSealer
from he_protocol import residues
from he_protocol.messages import UpdateHeader
from he_protocol.schemes.kahe import PROFILES, Kahe
from he_protocol.signing import read_unverified
from he_protocol.task import TensorSpec
from keys.schemes import make_opener
from tests.support.parties import World

CLIENTS, D = 1000, 100_000
SCALE = 2.0**19
"""The largest power of two for 1,000 clients within [-1, 1]."""


def test_the_mean_of_a_thousand_clients_is_right_to_seven_digits() -> None:
    """Everything but the network: encode, seal, fold, open envelopes, combine; against float64."""
    plan = {"scheme": "kahe", "profile": "kahe-30", "threshold": 1, "scale": SCALE, "value_range": 1.0}
    world = World(1, plan | {"max_clients": CLIENTS}, (TensorSpec("w", (D,)),))
    task = world.task
    scheme, layout = task.scheme, task.part("sum").layout
    assert isinstance(scheme, Kahe)
    assert layout is not None
    assert scheme.capacity < CLIENTS * (2 * SCALE + 1)  # twice the scale could wrap
    total, plain = layout.zeros(), np.zeros(D)
    rows = total.reshape(layout.rows, layout.degree)
    opening = make_opener(task, 0, world.hpke[0], {}).begin()
    sealer = KaheSealer(task, "client", threads=1)
    header = read_unverified(world.update("client").header, UpdateHeader)
    rng = np.random.default_rng(1)
    for _ in range(CLIENTS):
        update = rng.random(D, dtype=np.float32) * 2 - 1
        plain += update
        pieces: dict[str, list[bytes]] = {"b": [], "shares": []}
        write = partial(_append, pieces)
        sealer._seal(header.update_id, Encoder(task, update, None).block, write)
        residues.fold(rows, b"".join(pieces["b"]), layout)
        opening.add(header, *pieces["shares"])
    released = [residues.unpack(data, scheme.share_layout(D)) for _, data in opening.release(bytes(32))]
    opened = scheme.combine(total, released, D, CLIENTS, task.epoch_id)
    error = opened / SCALE / CLIENTS - plain / CLIENTS
    predicted = hypot(6.4, 0.5) / (sqrt(CLIENTS) * SCALE)  # rounding a uniform value adds at most 1/4
    assert error.std() < predicted * 1.01 < 5e-7
    assert error.std() > predicted * 0.98
    assert abs(error.mean()) < 6 * predicted / sqrt(D)
    assert np.abs(error).max() < 3e-6


def _append(pieces: dict[str, list[bytes]], part: str, data: bytes) -> None:
    pieces[part].append(data)


SEALING = """
import json, re
from pathlib import Path
import numpy as np
from he_client.encode import Encoder
from he_client.schemes.kahe import KaheSealer
from he_protocol.task import TensorSpec
from tests.support.parties import World

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def seal(update, threads):
    plan = {"scheme": "kahe", "profile": "kahe-30", "scale": 1024.0, "value_range": 1.0}
    task = World(1, plan | {"threshold": 1}, (TensorSpec("w", (update.size,)),)).task
    written = 0
    def write(part, data):
        nonlocal written
        written += len(data)
    KaheSealer(task, "client", threads=threads)._seal(bytes(16), Encoder(task, update, None).block, write)
    assert written == sum(part.size for part in task.body)
    return written

update = np.full(20_000_000, 0.5, dtype=np.float32)
seal(update[:1], 1)  # loads the kernels
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
before = memory("VmRSS")
written = seal(update, 2)
print(json.dumps({"grown": memory("VmHWM") - before, "written": written}))
"""


def test_sealing_takes_a_few_megabytes_whatever_the_models_size() -> None:
    """In a process of its own, by the kernel's high-water mark: 20 million coordinates, 75 MB sealed."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SEALING], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["written"] > 20_000_000 * PROFILES["kahe-30"].bits // 8
    assert result["grown"] < 32 << 20
