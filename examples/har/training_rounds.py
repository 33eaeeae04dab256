"""One training round of all phones, stage by stage, so that every stage's seconds are known."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from examples.har.data import Records
from examples.har.model import accuracy, network
from he_client.client import HushSumClient
from he_client.published import Model
from he_client.quantise import quantise_update
from he_client.tensors import flatten
from he_client.training import Arrays, clipped_gradient_sum, load_arrays, poisson_sample
from he_protocol.errors import ProblemError
from he_protocol.privacy.quantise import Integers
from he_protocol.task import Task

CLIENT_STAGES = ("train", "encrypt", "upload")
SERVER_STAGES = ("sum", "open")


@dataclass
class RoundResult:
    """What one round showed; `failure` is empty where a model was published."""

    number: int
    participants: int
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_per_parameter: float = 0.0
    accuracy: float = 0.0
    epsilon: float = 0.0
    max_abs_error: float = 0.0
    failure: str = ""


class Phones:
    """The clients of one process: each has its own identity, data and connection; they share one torch."""

    def __init__(self, task: Task, members: list[tuple[HushSumClient, Records]], unseen: Records) -> None:
        self._task = task
        self._members = members
        self._unseen = unseen
        self._module = network()

    async def round(self) -> RoundResult:
        """Train, encrypt, upload, wait for the opened sum, compare it with the plain one."""
        task, clients = self._task, [client for client, _ in self._members]
        clock = time.perf_counter
        times = [clock()]
        models = await asyncio.gather(*(client.pull_model(task) for client in clients))
        updates = await asyncio.to_thread(self._train, models[0])
        times.append(clock())
        integers = await asyncio.to_thread(
            lambda: [quantise_update(task, flatten(task, update), None) for update in updates]
        )
        base = models[0].version
        encrypted = await asyncio.gather(
            *(
                client.encrypt(task, partial(_slice, vector), base_version=base)
                for client, vector in zip(clients, integers, strict=True)
            )
        )
        times.append(clock())
        sent = await asyncio.gather(
            *(client.upload(task, item) for client, item in zip(clients, encrypted, strict=True))
        )
        times.append(clock())
        result = RoundResult(sent[0].round, len(sent))
        result.seconds = dict(zip(CLIENT_STAGES, np.diff(times).tolist(), strict=True))
        result.bytes_per_parameter = sum(item.bytes for item in sent) / len(sent) / task.parameters
        result.epsilon = clients[0].privacy_spent(task)
        try:
            await clients[0].wait(task, sent[0])
        except ProblemError as refusal:
            result.failure = str(refusal)
            return result
        await self._check(clients[0], integers, result)
        return result

    async def waiting(self) -> dict[int, list[str]]:
        """The rounds that wait for key holders, and the holders of which nothing was heard."""
        found = {}
        for status in await self._members[0][0].rounds(self._task):
            missing = [one.holder for one in status.committee if not one.said]
            if status.state in {"closed", "opening"}:
                found[status.round] = missing
        return found

    async def _check(self, client: HushSumClient, integers: list[Integers], result: RoundResult) -> None:
        """The opened sum against the plain one, the server's timings, and the new model on unseen people."""
        opened = await client.opened_sum(self._task, result.number)
        result.max_abs_error = float(np.abs(opened - np.sum(integers, axis=0)).max())
        timings = (await client.round(self._task, result.number)).seconds
        result.seconds |= {"sum": timings["sum"], "open": timings["screen"] + timings["wait_shares"] + timings["open"]}
        model = await client.pull_model(self._task)
        result.accuracy = await asyncio.to_thread(self._accuracy, model)

    def _train(self, model: Model) -> list[Arrays]:
        """Every phone's update: minus the sum of its sampled records' clipped gradients."""
        load_arrays(self._module, model.tensors)
        plan, updates = self._task.config.privacy, []
        for _, records in self._members:
            batch = records.pick(poisson_sample(len(records), plan.sampling_rate))
            total = clipped_gradient_sum(self._module, _loss, batch.inputs, batch.labels, plan.clip_norm)
            updates.append({name: -value for name, value in total.items()})
        return updates

    def _accuracy(self, model: Model) -> float:
        load_arrays(self._module, model.tensors)
        return accuracy(self._module, self._unseen)


def _slice(vector: Integers, start: int, stop: int) -> Integers:
    return vector[start:stop]


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(output, target)
