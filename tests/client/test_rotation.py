"""Rotated updates, from a client to the published model, and what they cost in noise."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client.quantise import UpdateQuantiser, quantise_update
from he_protocol.config import TensorSpec
from he_protocol.privacy.plan import PrivacyPlan
from he_protocol.privacy.quantise import dequantise
from he_protocol.sharing import Sharing
from he_protocol.sum_bounds import plan_sums
from he_protocol.task import Task
from tests.support.parties import World
from tests.support.service import Service

WIDE = {"w": np.zeros(3000, dtype=np.float32), "b": np.zeros(110, dtype=np.float32)}
SPIKE = {"w": np.eye(1, 3000, 7, dtype=np.float32)[0], "b": np.zeros(110, dtype=np.float32)}


@pytest.mark.parametrize("rotation", [True, False])
async def test_a_coordinate_far_beyond_the_value_range_arrives_where_updates_are_rotated(
    tmp_path: Path, rotation: bool
) -> None:
    """Both clients move one of 3,110 parameters by 1; no coordinate may be above 0.15."""
    plan: dict[str, Any] = {"privacy": {"unit": "none"}, "value_range": 0.15, "scale": 2.0**16, "rotation": rotation}
    await Service.provision(tmp_path / "root", "kahe", "kahe-30", model=WIDE, **plan)
    async with Service(tmp_path / "root") as service, service.committee(), service.client(1) as one:
        async with service.client(2) as two:
            sent = [await client.submit(service.task, SPIKE, base_version=0) for client in (one, two)]
        await one.wait(service.task, sent[0])
        model = (await one.pull_model(service.task)).tensors
    assert sent[0].saturated == (0.0 if rotation else pytest.approx(1 / 3110))
    assert model["w"][7] == pytest.approx(1.0 if rotation else 0.15, abs=0.01)
    assert np.abs(np.delete(model["w"], 7)).max() < 0.01


def task_of(length: int, **plan: object) -> Task:
    return World(plan=plan, tensors=(TensorSpec("w", (length,)),)).task


def test_the_norm_is_clipped_before_the_rotation() -> None:
    privacy = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 0.006, "delta": 1e-5, "epsilon_budget": 1e12}
    task = task_of(3110, privacy=privacy, rotation=True, scale=2.0**16, value_range=0.2)
    update = np.random.default_rng(1).standard_cauchy(3110).astype(np.float32)
    sent = dequantise(quantise_update(task, update, None), 2.0**16)
    assert np.linalg.norm(sent) == pytest.approx(1.0, abs=0.05)
    assert UpdateQuantiser(task, update, None).limited.saturated < 1e-3


def measured(rotation: bool) -> float:
    """The error of a published mean over that of the Gaussian mechanism alone: 190 clients, kahe-14, z = 1.5."""
    d, clients, z = 3110, 190, 1.5
    privacy = PrivacyPlan("client", 1.0, z, 1.0, 1e-5, 1e9)
    offers = plan_sums(
        privacy, length=d, min_clients=clients, max_clients=clients, sharing=Sharing(4, 2), openings=100,
        rotation=rotation,
    )  # fmt: skip
    offer = next(one for one in offers if one.profile == "kahe-14")
    plan = {
        "scheme": "kahe", "profile": "kahe-14", "privacy": privacy, "rotation": rotation, "scale": offer.scale,
        "value_range": offer.value_range, "min_clients": clients, "max_clients": clients,
    }  # fmt: skip
    task = task_of(d, **plan)
    rng = np.random.default_rng(3)
    true, total = np.zeros(d), np.zeros(d, dtype=np.int64)
    for _ in range(clients):
        update = (rng.standard_normal(d) * np.where(np.arange(d) % 10, 0.3, 3.0)).astype(np.float32)
        update /= np.linalg.norm(update)
        true += update
        total += quantise_update(task, update, None)
    total += np.rint(rng.standard_normal(d) * task.scheme.error_std * sqrt(clients)).astype(np.int64)
    assert np.abs(total).max() <= task.scheme.capacity
    mean = dequantise(total, offer.scale) / clients
    if task.rotation is not None:
        mean = task.rotation.inverse(mean)
    error = np.linalg.norm(mean - true / clients) / sqrt(d)
    return float(error / (z / clients))


def test_few_bits_cost_little_noise_where_updates_are_rotated() -> None:
    with_rotation, without = measured(True), measured(False)
    assert with_rotation <= 1.25
    assert without > 1.15 * with_rotation
