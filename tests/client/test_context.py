"""What a training function is told, what it may return, and that a mix-up of weights and update is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from he_client import HushSumClient, LocalResult, SyncClient, TrainingContext
from he_client.attempt import attempt
from he_client.lab import as_client
from he_client.rounds import RoundOutcome, train_rounds
from he_client.tensors import flatten
from he_client.training import tensor_specs
from he_protocol.config import TensorSpec
from he_protocol.errors import ProblemError
from he_protocol.problems import BAD_TENSORS, STALE_UPDATE
from he_protocol.task import Task
from he_testing.problems import expect_problem
from tests.client.test_resend import answer_of
from tests.integration.test_readme import marked
from tests.support.parties import World
from tests.support.proxy import Proxy
from tests.support.service import Service

HOW_TO = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()
MODEL = {"w": np.array([[3.0, -4.0], [1.0, 2.0]], np.float32), "b": np.array(5.0, np.float32)}
STEP = {name: np.full(value.shape, 0.125, np.float32) for name, value in MODEL.items()}
AFTER = {name: value + STEP[name] for name, value in MODEL.items()}
NUMBERS = {"scheme": "kahe", "profile": "kahe-30", "value_range": 16.0, "scale": 4096.0}
DP = {"unit": "client", "clip_norm": 1.0, "noise_multiplier": 10.0, "delta": 1e-6, "epsilon_budget": 100.0}


def task_of(privacy: dict[str, Any]) -> Task:
    specs = tuple(TensorSpec(name, value.shape) for name, value in MODEL.items())
    return World(plan=NUMBERS | {"privacy": privacy}, tensors=specs).task


PLAIN, NOISY = (
    TrainingContext(task_of({"unit": "none"}), 3, 2, "phone-1"),
    TrainingContext(task_of(DP), 3, 2, "phone-1"),
)


def returning(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def update_of(result: LocalResult) -> np.ndarray:
    assert not result.weights
    return np.asarray(flatten(PLAIN.task, result.tensors))


def test_the_second_parameter_is_the_context() -> None:
    def asks(model: Any, context: TrainingContext) -> Any:
        told.append(context)
        return STEP

    def asks_in_a_lab(model: Any, context: TrainingContext, client: int) -> Any:
        return asks(model, replace(context, round=client))

    def does_not(model: Any, epochs: int = 4) -> Any:
        told.append(epochs)
        return STEP

    told: list[object] = []
    for train in (asks, as_client(asks_in_a_lab, 7), does_not, as_client(asks, 1), partial(asks)):
        attempt(train, NOISY, MODEL)
    assert told == [NOISY, replace(NOISY, round=7), 4, NOISY, NOISY]
    assert NOISY.plan.clip_norm == 1.0


@pytest.mark.parametrize("context", [PLAIN, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize(
    "returned",
    [
        STEP,
        (STEP, 4),
        list(STEP.values()),
        LocalResult(STEP),
        LocalResult(tuple(STEP.values())),
        LocalResult(AFTER, weights=True),
        LocalResult(list(AFTER.values()), weights=True),
        LocalResult(
            {name: torch.from_numpy(np.array(value)).bfloat16() for name, value in AFTER.items()}, weights=True
        ),
    ],
    ids=["dict", "pair", "list", "result", "result of a tuple", "weights", "weights in a list", "weights of torch"],
)
def test_every_way_to_say_an_update(context: TrainingContext, returned: Any, caplog: pytest.LogCaptureFixture) -> None:
    result = attempt(returning(returned), context, MODEL)
    np.testing.assert_allclose(update_of(result), flatten(PLAIN.task, STEP), atol=0.02)
    assert result.examples == (4 if isinstance(returned, tuple) else None)
    assert caplog.messages == []


def test_a_result_keeps_what_it_says() -> None:
    metrics: dict[str, Any] = {"loss": torch.tensor(0.5), "seen": np.int64(3)}
    result = attempt(returning(LocalResult(AFTER, 12.0, metrics, weights=True)), PLAIN, MODEL)
    assert (result.examples, dict(result.metrics)) == (12.0, {"loss": 0.5, "seen": 3.0})


def test_metrics_that_are_no_numbers_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    kinds: list[dict[str, Any]] = [{"loss": "low", "good": 1}, {"matrix": np.zeros((2, 2)), "good": 1}]
    for metrics in kinds:
        result = attempt(returning(LocalResult(STEP, metrics=metrics)), PLAIN, MODEL)
        assert result.metrics == {"good": 1.0}
    assert "metric 'loss' is not shown" in caplog.text
    for nothing in (None, 3.0, [("loss", 1.0)]):
        assert attempt(returning(LocalResult(STEP, metrics=nothing)), PLAIN, MODEL).metrics == {}  # type: ignore[arg-type]


def test_metrics_of_a_training_that_gave_no_update_are_kept() -> None:
    result = attempt(returning(LocalResult({}, metrics={"loss": 1.0})), NOISY, MODEL)
    assert not update_of(result).any()
    assert result.metrics == {"loss": 1.0}


def test_a_function_may_change_what_it_gets() -> None:
    def in_place(model: dict[str, np.ndarray]) -> LocalResult:
        for value in model.values():
            value += 0.125
        return LocalResult(model, weights=True)

    given = {name: value.copy() for name, value in MODEL.items()}
    assert np.allclose(update_of(attempt(in_place, PLAIN, given)), 0.125)
    assert all(np.array_equal(value, MODEL[name]) for name, value in given.items())


@pytest.mark.parametrize("context", [PLAIN, NOISY], ids=["plain", "noisy"])
def test_weights_of_another_model_are_refused(context: TrainingContext) -> None:
    """Not by what they hold: names and shapes do not depend on data."""
    for wrong in ({"w": AFTER["w"]}, AFTER | {"b": np.zeros(2, np.float32)}, [AFTER["w"]]):
        with expect_problem(BAD_TENSORS):
            attempt(returning(LocalResult(wrong, weights=True)), context, MODEL)


SCALED = {factor: {name: factor * value for name, value in MODEL.items()} for factor in (0.01, 0.6, 0.75, 1.9, 2.1)}
LOOKS_LIKE_WEIGHTS, LOOKS_LIKE_AN_UPDATE = "looks like the new weights", "look like an update"


@pytest.mark.parametrize("context", [PLAIN, NOISY], ids=["plain", "noisy"])
@pytest.mark.parametrize(
    ("returned", "model", "said"),
    [
        (AFTER, MODEL, LOOKS_LIKE_WEIGHTS),
        ((AFTER, 5), MODEL, LOOKS_LIKE_WEIGHTS),
        (list(AFTER.values()), MODEL, LOOKS_LIKE_WEIGHTS),
        (LocalResult(AFTER), MODEL, LOOKS_LIKE_WEIGHTS),
        (MODEL, MODEL, LOOKS_LIKE_WEIGHTS),
        (SCALED[0.75], MODEL, LOOKS_LIKE_WEIGHTS),
        (SCALED[1.9], MODEL, LOOKS_LIKE_WEIGHTS),
        (SCALED[0.6], MODEL, ""),
        (SCALED[2.1], MODEL, ""),
        (STEP, MODEL, ""),
        ({name: -value for name, value in MODEL.items()}, MODEL, ""),
        (AFTER, {name: 0 * value for name, value in MODEL.items()}, ""),
        ({name: 0 * value for name, value in MODEL.items()}, {name: 0 * value for name, value in MODEL.items()}, ""),
        (LocalResult(STEP, weights=True), MODEL, LOOKS_LIKE_AN_UPDATE),
        (LocalResult(SCALED[0.01], weights=True), MODEL, LOOKS_LIKE_AN_UPDATE),
        (LocalResult(AFTER, weights=True), MODEL, ""),
        (LocalResult(SCALED[0.6], weights=True), MODEL, ""),
        (LocalResult(AFTER, weights=True), {name: 0 * value for name, value in MODEL.items()}, ""),
    ],
)
def test_a_mix_up_of_weights_and_update_is_said(
    context: TrainingContext, returned: Any, model: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And no more than said: a refusal would depend on data."""
    attempt(returning(returned), context, model)
    assert [said in line for line in caplog.messages] == ([True] if said else [])


def example(name: str, **about: Any) -> Any:
    """The function of an example in docs/how-to.md, given the names that it takes as there."""
    exec(compile(marked(HOW_TO, name), "how-to.md", "exec"), about)
    return about["update"]


def test_the_how_tos_function_that_returns_weights() -> None:
    update = example("result", fit=lambda _: (AFTER, 7, 0.5))
    result = attempt(update, PLAIN, MODEL)
    assert np.allclose(update_of(result), 0.125)
    assert (result.examples, result.metrics) == (7, {"loss": 0.5})


def test_the_how_tos_function_that_asks_for_its_context() -> None:
    module, inputs = torch.nn.Linear(2, 1), torch.full((9, 2), 100.0)
    about = {"module": module, "loss": torch.nn.functional.mse_loss, "inputs": inputs, "targets": torch.zeros(9, 1)}
    privacy = DP | {"unit": "record", "clip_norm": 0.25, "noise_multiplier": 100.0}
    task = World(
        plan=NUMBERS | {"weighting": "fixed", "weight_cap": 9.0, "privacy": privacy}, tensors=tensor_specs(module)
    ).task
    model = {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    result = attempt(example("context", **about), TrainingContext(task, 0, 1, "phone-1"), model)
    assert np.linalg.norm(flatten(task, result.tensors)) == pytest.approx(9 * 0.25, 1e-4)
    assert (flatten(task, result.tensors) < 0).all()


async def outcomes(client: HushSumClient, service: Service, train: Any, rounds: int) -> list[RoundOutcome]:
    return [one async for one in train_rounds(client, service.task, train, rounds)]


class Notes:
    """A training function that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int, int]] = []

    def __call__(self, model: dict[str, np.ndarray], context: TrainingContext) -> LocalResult:
        context.state["calls"] = context.state.get("calls", 0) + 1
        self.told.append((context.client, context.round, context.version, context.state["calls"]))
        step = {name: np.full(value.shape, 0.25, np.float32) for name, value in model.items()}
        return LocalResult(step, metrics={"loss": 1.0 / context.state["calls"]})


async def test_rounds_are_counted_and_each_client_has_a_state_of_its_own(service: Service) -> None:
    """Of one function for both, as in a lab."""
    notes = Notes()
    async with service.committee(), service.client(1) as one, service.client(2) as two:
        both = await asyncio.gather(*(outcomes(client, service, notes, 2) for client in (one, two)))
        names = (one.name, two.name)
    assert sorted(notes.told) == [(name, number, number - 1, number) for name in names for number in (1, 2)]
    for mine in both:
        assert [(one.version, dict(one.metrics)) for one in mine] == [(1, {"loss": 1.0}), (2, {"loss": 0.5})]


async def test_an_update_that_is_made_again_is_of_the_same_round(service: Service, proxy: Proxy) -> None:
    notes = Notes()
    async with service.committee(), service.client(1, proxy.url) as one, service.client(2) as two:
        proxy.faults["PUT"] = [answer_of(STALE_UPDATE)]
        await two.submit_from(service.task, notes, await two.pull_model(service.task))
        (outcome,) = await outcomes(one, service, notes, 1)
    assert notes.told == [(two.name, 1, 0, 1), (one.name, 1, 0, 1), (one.name, 1, 0, 2)]
    assert outcome.metrics == {"loss": 0.5}


async def test_metrics_of_a_round_that_refuses_the_update_are_kept(service: Service, proxy: Proxy) -> None:
    """And belong to no other round."""
    notes = Notes()

    def fails_later(model: dict[str, np.ndarray], context: TrainingContext) -> LocalResult:
        if context.round == 2:
            raise ProblemError(STALE_UPDATE, "of the function's own")
        return notes(model, context)

    async with service.client(1, proxy.url) as client:
        proxy.faults["PUT"] = [answer_of(STALE_UPDATE)] * 3
        rounds = train_rounds(client, service.task, fails_later, 2, raise_errors=True)
        both = [outcome async for outcome in rounds]
    assert [outcome.refusal and outcome.refusal.problem for outcome in both] == [STALE_UPDATE, STALE_UPDATE]
    assert [dict(outcome.metrics) for outcome in both] == [{"loss": pytest.approx(1 / 3)}, {}]


async def test_one_training_by_itself_is_a_run_of_one_round(service: Service) -> None:
    notes = Notes()

    def twice() -> None:
        state = service.folder(1) / "state"
        with SyncClient(service.url, service.identity(1), state_dir=state) as client:
            for _ in range(2):
                sent = client.submit_from(service.task, notes, client.pull_model(service.task), within=30)
                client.wait(service.task, sent)

    async with service.committee(), service.client(2) as partner:
        other = asyncio.create_task(outcomes(partner, service, lambda model: model, 2))
        await asyncio.to_thread(twice)
        await other
    assert notes.told == [("client-01", 1, 0, 1), ("client-01", 1, 1, 1)]
