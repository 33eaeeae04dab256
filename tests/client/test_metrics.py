"""Metrics from training functions to the round's sum, through a real server and committee."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_client.context import LocalResult
from he_client.quantise import UpdateQuantiser, quantise_update
from he_client.rounds import train_rounds
from he_protocol.config import TensorSpec
from he_protocol.documents import RoundStatus
from he_protocol.task import Task
from he_server.cli.stored import reported
from tests.support.parties import World
from tests.support.service import Service

ASKED: list[dict[str, Any]] = [{"name": "loss", "high": 4.0}, {"name": "saturated"}, {"name": "ages", "high": 100.0,
                                                                                    "bins": 2}]  # fmt: skip


def training(step: float, loss: float, ages: list[float]) -> Any:
    def train(model: dict[str, np.ndarray]) -> LocalResult:
        update = {name: np.full(value.shape, step, np.float32) for name, value in model.items()}
        return LocalResult(update, metrics={"loss": loss, "ages": ages, "private": 7.0})

    return train


async def played(root: Path, scheme: str, profile: str, **plan: Any) -> RoundStatus:
    """A round of two clients: one loses a third of its coordinates to the value range."""
    await Service.provision(root, scheme, profile, metrics=ASKED, **plan)
    async with Service(root) as service, service.committee(), service.client(1) as one, service.client(2) as two:

        async def take_part(client: Any, train: Any) -> None:
            async for outcome in train_rounds(client, service.task, train, 1):
                assert outcome.refusal is None

        await asyncio.gather(
            take_part(one, training(0.5, 1.0, [10.0, 90.0])), take_part(two, training(9.0, 2.0, [90.0]))
        )
        return await one.round(service.task, 1)


@pytest.mark.parametrize(("scheme", "profile"), [("kahe", "kahe-30"), ("ckks", "ckks-8192")])
async def test_a_round_says_what_its_clients_reported(tmp_path: Path, scheme: str, profile: str) -> None:
    status = await played(tmp_path / "root", scheme, profile, privacy={"unit": "none"})
    loss, cut, ages = status.metrics
    assert [one.name for one in (loss, cut, ages)] == ["loss", "saturated", "ages"]
    assert loss.reports == pytest.approx(2, abs=0.02)
    assert loss.values == (pytest.approx(1.5, abs=0.05),)
    assert cut.values == (pytest.approx(0.5, abs=0.02),)
    assert ages.values == pytest.approx((0.25, 0.75), abs=0.02)
    assert 0 < loss.std < 0.05
    assert reported(status).startswith(f"loss {loss.values[0]:.3g} ±")
    assert f"; saturated {cut.values[0]:.3g} ±" in reported(status)


async def test_under_privacy_two_clients_are_too_few_to_tell(tmp_path: Path) -> None:
    status = await played(tmp_path / "root", "kahe", "kahe-30")
    assert [one.values for one in status.metrics] == [(), (), ()]
    assert all(one.reports_std > 1 for one in status.metrics)
    assert "loss: too few reports to tell" in reported(status)


def task_of(privacy: dict[str, Any]) -> Task:
    plan = {"metrics": ASKED, "privacy": privacy}
    return World(plan=plan, tensors=(TensorSpec("w", (4,)),)).task


@pytest.mark.parametrize("unit", ["none", "client"])
@pytest.mark.parametrize("metrics", [{}, {"loss": float("nan"), "ages": 1}, {"loss": "x", "ages": 1}], ids=str)
def test_no_update_is_lost_for_its_metrics(
    unit: str, metrics: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    noise = {"clip_norm": 1.0, "noise_multiplier": 0.006, "delta": 1e-5, "epsilon_budget": 1e12}
    task = task_of({"unit": unit} | (noise if unit == "client" else {}))
    quantiser = UpdateQuantiser(task, np.full(4, 0.5, np.float32), None, metrics=metrics)
    with caplog.at_level(logging.WARNING):
        block = quantiser.block(0, task.length)
    assert np.abs(block[:4]).min() > 400
    assert np.abs(block[4:]).max() <= 45
    assert task.length == 4 + 1 + 1 + 1 + 2


def test_what_saturates_is_the_clients_own_figure() -> None:
    """A training function cannot say another."""
    task = task_of({"unit": "none"})
    said = {"loss": 0.0, "ages": 1.0, "saturated": 0.0}
    block = UpdateQuantiser(task, np.array([9, 9, 9, 0], np.float32), None, metrics=said).block(4, task.length)
    assert block[2] / block[0] == pytest.approx(0.75 - 0.5, abs=0.001)


def test_without_metrics_a_task_is_as_before() -> None:
    task = World(tensors=(TensorSpec("w", (4,)),)).task
    assert quantise_update(task, np.zeros(4, np.float32), None).size == task.length == 4
