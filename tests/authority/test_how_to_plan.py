"""The plan of docs/how-to.md, as it stands there: it can be signed, and what it promises is worth something."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from he_authority.tasks import build_config
from he_holder.holder import check_promise
from he_holder.hpke_key import HpkeKey
from he_protocol.config import ModelSpec, TensorSpec
from he_protocol.privacy.plan import epsilon
from he_protocol.task import Task
from he_testing.clocks import FakeClock
from he_testing.parties import Authority

TEXT = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()
USEFUL = 8.0
"""The largest epsilon that the how-to may teach."""


def signed() -> Task:
    """With a model of a million parameters and as many key holders as the how-to's command names."""
    [plan] = re.findall(r"^<!-- test: plan -->\n```toml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    [command] = re.findall(r"^he-authority task sign .*?(?<!\\)$", TEXT, re.DOTALL | re.MULTILINE)
    authority = Authority(clock=FakeClock())
    holders = [
        authority.party(f"holder-{number}", "holder", hpke=HpkeKey.generate()).credential
        for number in range(command.count("--holder "))
    ]
    server = authority.party("server", "server").credential
    model = ModelSpec((TensorSpec("w", (1000, 1000)),), bytes(32))
    config = build_config(tomllib.loads(plan), model, server, holders, authority.key.public)
    return Task.from_token(authority.key.sign(config), authority.key.public)


def test_its_promise_is_a_useful_one_and_is_kept() -> None:
    task = signed()
    plan, openings = task.config.privacy, task.config.rounds.max_openings
    check_promise(task)
    assert epsilon(plan, openings) <= plan.epsilon_budget <= USEFUL


def test_the_epsilon_that_it_names_is_the_right_one() -> None:
    [(said, openings)] = re.findall(r"epsilon ([\d.]+) after (\d+) openings", TEXT)
    config = signed().config
    assert int(openings) == config.rounds.max_openings
    assert f"{epsilon(config.privacy, config.rounds.max_openings):.2f}" == said


def test_the_planning_command_is_for_the_same_plan() -> None:
    [(noise, rounds, delta)] = re.findall(r"he-server plan .*--noise (\S+) --rounds (\d+) --delta ([^\s`]+)", TEXT)
    config = signed().config
    privacy = config.privacy
    assert (float(noise), int(rounds), float(delta)) == (
        privacy.noise_multiplier,
        config.rounds.max_openings,
        privacy.delta,
    )
