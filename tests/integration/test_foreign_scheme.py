"""A scheme of another distribution: installed, it works from the authority to the published model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest

from he_client.schemes import kernel_steps as client_steps
from he_holder.schemes import kernel_steps as holder_steps
from he_protocol.problems import WRONG_SCHEME
from he_protocol.schemes import registry
from he_server.services.kernels import kernel_steps as server_steps
from he_testing.problems import expect_problem
from tests.support import toy_scheme
from tests.support.service import MODEL, Service

GROUPS = ("hushsum.schemes", "hushsum.client_schemes", "hushsum.holder_schemes")
PROFILE = "toy-40"


def install(site: Path, name: str, module: str, groups: tuple[str, ...] = GROUPS, scheme: str = "toy") -> None:
    """What `pip install` leaves: the module, and a description of the distribution with its entry points."""
    (site / f"{module}.py").write_text(Path(toy_scheme.__file__).read_text())
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{scheme} = {module}\n" for group in groups))
    forget()


def forget() -> None:
    """The registry looks again at what is installed."""
    registry._declared.cache_clear()
    registry.load_scheme.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages. What was loaded from it is forgotten."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
    forget()


async def test_it_encrypts_sums_and_opens(site: Path, tmp_path: Path) -> None:
    with expect_problem(WRONG_SCHEME, "expected ckks, kahe, got toy"):
        registry.load_scheme("toy", PROFILE)
    install(site, "hushsum-toy", "hushsum_toy")
    assert type(registry.load_scheme("toy", PROFILE)).__module__ == "hushsum_toy"
    root = tmp_path / "parties"
    await Service.provision(root, "toy", PROFILE, privacy={"unit": "none"})
    updates = [{"w": np.full((2, 3), value), "b": np.full(2, -value)} for value in (0.5, 1.0)]
    async with Service(root) as service, AsyncExitStack() as stack:
        await stack.enter_async_context(service.committee())
        clients = [await stack.enter_async_context(service.client(number)) for number in (1, 2)]
        task = await clients[0].task(service.task.id)
        sent = await asyncio.gather(
            *(
                client.submit(task, {name: value.astype(np.float32) for name, value in update.items()}, base_version=0)
                for client, update in zip(clients, updates, strict=True)
            )
        )
        assert await clients[0].wait(task, sent[0], within=60) == 1
        model = await clients[0].pull_model(task)
    np.testing.assert_allclose(model.tensors["w"], MODEL["w"] + 0.75, atol=1e-2)
    np.testing.assert_allclose(model.tensors["b"], MODEL["b"] - 0.75, atol=1e-2)


def test_its_kernels_are_compiled_with_all_others(site: Path) -> None:
    install(site, "hushsum-toy", "hushsum_toy")
    for steps in (client_steps, holder_steps, server_steps):
        found = dict(steps())
        assert {PROFILE, "kahe-30", "ckks-8192"} <= set(found)
        found[PROFILE]()


def test_a_half_that_is_missing_is_named(site: Path) -> None:
    install(site, "hushsum-toy", "hushsum_toy", groups=GROUPS[:1])
    assert registry.load_scheme("toy", PROFILE)
    with expect_problem(WRONG_SCHEME, "hushsum.holder_schemes"):
        registry.load_half("hushsum.holder_schemes", "toy")


def test_two_distributions_with_one_name_are_refused(site: Path) -> None:
    """Else the order of folders would say whose scheme a task means."""
    install(site, "hushsum-toy", "hushsum_toy")
    install(site, "another-toy", "another_toy")
    install(site, "false-kahe", "false_kahe", scheme="kahe")
    for name in ("toy", "kahe"):
        with expect_problem(WRONG_SCHEME, "declared twice"):
            registry.load_scheme(name, PROFILE)


def test_a_scheme_that_cannot_be_imported_is_refused(site: Path) -> None:
    install(site, "hushsum-toy", "hushsum_toy")
    (site / "hushsum_toy.py").unlink()
    with expect_problem(WRONG_SCHEME, "cannot be loaded"):
        registry.load_scheme("toy", PROFILE)


def test_a_profile_of_another_scheme_is_refused(site: Path) -> None:
    install(site, "hushsum-toy", "hushsum_toy", scheme="tyo")
    with expect_problem(WRONG_SCHEME, "of another scheme"):
        registry.load_scheme("tyo", PROFILE)
