"""Scheme `kahe` at size: the error of a mean of a thousand clients, and the memory that sealing takes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from math import hypot, sqrt

import numpy as np
import pytest

from he_client.quantise import UpdateQuantiser
from he_client.schemes.kahe import KaheEncryptor
from he_holder.schemes import make_share_maker
from he_protocol.arithmetic import residues
from he_protocol.config import TensorSpec
from he_protocol.identity.jws import read_unverified
from he_protocol.messages import UpdateHeader
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.schemes.kahe import PROFILES, Kahe
from he_protocol.schemes.registry import load_scheme
from he_protocol.schemes.scheme import combine
from he_protocol.sharing import Sharing
from he_protocol.sum_bounds import plan_sums
from tests.support.kahe import SECURE
from tests.support.parties import World


def mean_errors(profile: str, scale: float, clients: int, length: int) -> np.ndarray:
    """Mean of `clients` uniform updates in [-1, 1] minus the same in float64: shape (length,).

    Everything but the network: encode, seal, fold, open envelopes, combine.
    """
    plan = {"scheme": "kahe", "profile": profile, "threshold": 1, "scale": scale, "value_range": 1.0}
    world = World(1, plan | {"max_clients": clients}, (TensorSpec("w", (length,)),))
    task = world.task
    scheme, layout = task.scheme, task.section("sum").layout
    assert isinstance(scheme, Kahe)
    assert layout is not None
    total, plain = layout.zeros(), np.zeros(length)
    rows = total.reshape(layout.rows, layout.degree)
    opening = make_share_maker(task, 0, world.hpke[0], {}).begin()
    sealer = KaheEncryptor(task, "client", threads=1)
    header = read_unverified(world.update("client").header, UpdateHeader)
    rng = np.random.default_rng(1)
    for _ in range(clients):
        update = rng.random(length, dtype=np.float32) * 2 - 1
        plain += update
        pieces: dict[str, list[bytes]] = {"b": [], "shares": []}
        write = partial(_append, pieces)
        sealer._encrypt(header.update_id, UpdateQuantiser(task, update, None).block, write)
        residues.fold(rows, b"".join(pieces["b"]), layout)
        opening.add(header, *pieces["shares"])
    released = [residues.unpack(data, scheme.share_layout(length)) for _, data in opening.release(bytes(32), 0)]
    opened = combine(scheme, total, released, length, clients, task.epoch_id)
    return opened / scale / clients - plain / clients


def test_the_mean_of_a_thousand_clients_is_right_to_seven_digits() -> None:
    clients, length = 1000, 100_000
    scale = 2.0**19
    assert load_scheme("kahe", "kahe-30").capacity < clients * (2 * scale + 1)  # twice the scale could wrap
    error = mean_errors("kahe-30", scale, clients, length)
    predicted = hypot(6.4, 0.5) / (sqrt(clients) * scale)  # rounding a uniform value adds at most 1/4
    assert error.std() < predicted * 1.01 < 5e-7
    assert error.std() > predicted * 0.98
    assert abs(error.mean()) < 6 * predicted / sqrt(length)
    assert np.abs(error).max() < 3e-6


@pytest.mark.parametrize("clients", [4, 40])
@pytest.mark.parametrize("profile", sorted(SECURE))
def test_the_planner_predicts_the_error_of_every_profile(profile: str, clients: int) -> None:
    """At the scale that the planner itself offers."""
    length = 40_000
    offers = plan_sums(
        PrivacyPlan("none"),
        length=length,
        min_clients=2,
        max_clients=clients,
        sharing=Sharing(1, 1),
        openings=10,
        value_range=1.0,
    )
    offer = next(offer for offer in offers if offer.profile == profile)
    assert offer.scale >= 1
    error = mean_errors(profile, offer.scale, clients, length)
    assert 0.97 < error.std() / offer.mean_error < 1.03


def _append(pieces: dict[str, list[bytes]], part: str, data: bytes) -> None:
    pieces[part].append(data)


SEALING = """
import json, re
from pathlib import Path
import numpy as np
from he_client.quantise import UpdateQuantiser
from he_client.schemes.kahe import KaheEncryptor
from he_protocol.config import TensorSpec
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
    KaheEncryptor(task, "client", threads=threads)._encrypt(bytes(16), UpdateQuantiser(task, update, None).block, write)
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
