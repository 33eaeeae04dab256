"""Opening in blocks: the same bytes as from whole vectors, in a few megabytes, and nothing left where it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from he_party.tensors import read_tensors
from he_protocol.aggregation.optimiser import Optimiser
from he_protocol.arithmetic.ntt_lanes import LANES
from he_protocol.config import TensorSpec
from he_protocol.problems import COMBINE_REFUSED, DISK_FULL, MALFORMED, WRONG_SIZE
from he_protocol.schemes.scheme import blocks
from he_protocol.tensors import model_digest
from he_server.blobs.keys import model_blob, optimiser_blob, sum_blob, total_blob
from he_server.blobs.tensor_file import TensorFile, model_file, write_tensors
from he_server.jobs.opening import write_version
from he_testing.problems import expect_problem
from tests.support.closed_round import SCALE, ClosedRound, opened_whole

OUT_OF_ORDER = (TensorSpec("z", (3, 50_000)), TensorSpec('a/\u00e9"\n', (7,)), TensorSpec("m", (20_011, 2)))
"""In the file "a" comes first: a block of coordinates lies in several places of it."""


def reference(closed: ClosedRound) -> tuple[bytes, bytes, bytes]:
    """Model, velocity and sum as they come of whole vectors (value_range 1), written by the safetensors library."""
    config = closed.task.config
    sums = [opened_whole(closed, number) for number in range(closed.buckets)]
    total = np.sum(sums, axis=0)
    weights = [float(closed.count)] * closed.buckets
    values = sums
    if config.aggregation.weighting == "examples":
        weights = [one[-1] / SCALE / config.aggregation.value_range for one in sums]
        values = [one[:-1] for one in sums]
    if config.aggregation.combination == "mean":
        mean = np.clip(np.sum(values, axis=0) / SCALE / sum(weights), -1, 1)
    else:
        means = np.clip([one / SCALE / weight for one, weight in zip(values, weights, strict=True)], -1, 1)
        means.sort(axis=0)
        middle = (closed.buckets - 1) // 2
        trim = middle if config.aggregation.combination == "median" else min(max(1, closed.buckets // 4), middle)
        mean = means[trim : closed.buckets - trim].mean(axis=0)
    if closed.task.rotation is not None:
        mean = closed.task.rotation.inverse(mean)
    before = np.concatenate([closed.model[spec.name].reshape(-1) for spec in config.model.tensors])
    stepped, state = config.aggregation.optimiser.step(before, closed.state, mean, closed.base.version)
    after, at = {}, 0
    for spec in config.model.tensors:
        after[spec.name] = stepped[at : at + spec.size].reshape(spec.shape)
        at += spec.size
    updates = np.array([closed.buckets * closed.count])
    return (
        save(after),
        save(dict(zip(config.aggregation.optimiser.state, state, strict=True))),
        save({"sum": total, "updates": updates}),
    )


@pytest.mark.parametrize(
    ("buckets", "plan"),
    [
        (1, {}),
        (1, {"weighting": "examples"}),
        (1, {"rotation": True}),
        (2, {"optimiser": Optimiser("fedyogi", 0.7, 0.9, half_life=3.0)}),
        (3, {"rotation": True, "weighting": "examples"}),
        (2, {"profile": "kahe-14", "weighting": "examples"}),
        (3, {"combination": "median"}),
        (8, {"combination": "trimmed-mean", "weighting": "examples"}),
        (2, {"scheme": "ckks", "profile": "ckks-8192"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_blocks_make_the_same_bytes_as_whole_vectors(tmp_path: Path, buckets: int, plan: dict[str, Any]) -> None:
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, buckets, **plan)
    model, velocity, total = reference(closed)
    digest = closed.open()
    assert digest == sha256(model).hexdigest()
    assert closed.blobs.read(model_blob(closed.task.id, digest)) == model
    assert closed.blobs.read(optimiser_blob(closed.task.id, digest)) == velocity
    assert closed.blobs.read(sum_blob(closed.task.id, 1)) == total
    assert closed.partials() == []


def test_where_the_weight_has_a_block_of_its_own(tmp_path: Path) -> None:
    """Four groups of 16 polynomials are a block: the last one has no coordinate of the model."""
    closed = ClosedRound(tmp_path, (TensorSpec("w", (4 * LANES * 2048,)),), 1, weighting="examples")
    assert len(list(blocks((4 * LANES + 1, 1, 2048)))) == 2
    model, velocity, total = reference(closed)
    digest = closed.open()
    assert closed.blobs.read(model_blob(closed.task.id, digest)) == model
    assert closed.blobs.read(optimiser_blob(closed.task.id, digest)) == velocity
    assert closed.blobs.read(sum_blob(closed.task.id, 1)) == total


@pytest.mark.parametrize("version", [0, 4])
def test_the_first_round_begins_without_velocity(tmp_path: Path, version: int) -> None:
    """Whatever the initial model's version is by then: rounds may have failed, or a backup was restored."""
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1, version=0)
    closed.base = replace(closed.base, version=version)
    assert closed.blobs.read(optimiser_blob(closed.task.id, closed.open())) == reference(closed)[1]


def test_a_model_under_a_further_version_keeps_its_velocity(tmp_path: Path) -> None:
    """After a round that failed, and after a recovery."""
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1)
    closed.base = replace(closed.base, version=4, round_id=None)
    assert closed.blobs.read(optimiser_blob(closed.task.id, closed.open())) == reference(closed)[1]


def test_a_bucket_without_weight_is_dropped(tmp_path: Path) -> None:
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 3, weighting="examples")
    closed.weigh(1, 0)
    checked = closed.check()
    assert [bucket.total for bucket in checked.kept] == [total_blob(1, 0), total_blob(1, 2)]
    assert [bucket.bucket for bucket in checked.dropped] == [1]
    assert "summed weight" in checked.dropped[0].failure.detail
    for number in (0, 2):
        closed.weigh(number, -1)
    with expect_problem(COMBINE_REFUSED, "no bucket opens"):
        closed.open()


def test_a_model_that_would_overflow_leaves_nothing(tmp_path: Path) -> None:
    """In its last block: the others are written by then."""
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1)
    closed.model["m"][-1, -1] = np.nan
    closed.keep_base()
    before = closed.models()
    with expect_problem(COMBINE_REFUSED, "range of float32"):
        closed.open()
    assert (closed.models(), closed.partials()) == (before, [])


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1)
    before = closed.models()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    kept = closed.check().kept
    with monkeypatch.context() as patch, expect_problem(DISK_FULL):
        patch.setattr(os, "fsync", full)
        write_version(closed.task, closed.blobs, 1, kept, closed.base)
    assert (closed.models(), closed.partials()) == (before, [])


def test_damaged_files_are_not_opened(tmp_path: Path) -> None:
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1)
    total = closed.blobs.read(total_blob(1, 0))
    closed.blobs.put(total_blob(1, 0), total[:-8])
    with expect_problem(WRONG_SIZE):
        closed.open()
    closed.blobs.put(total_blob(1, 0), total)
    name = model_blob(closed.task.id, closed.base.sha256)
    model = closed.blobs.read(name)
    for damaged in (model[:-1], model.replace(b"F32", b"I32", 1)):
        closed.blobs.put(name, damaged)
        with expect_problem(MALFORMED):
            closed.open()
    closed.blobs.put(name, model)
    closed.open()


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(st.dictionaries(names.filter(lambda name: name != "__metadata__"), shapes, min_size=1, max_size=6))
def test_files_are_those_of_the_safetensors_library(tensors: dict[str, tuple[int, ...]]) -> None:
    values = {name: np.full(shape, i, dtype=np.float32) for i, (name, shape) in enumerate(tensors.items())}
    assert write_tensors(values) == save(values)


def test_any_run_of_elements_is_read_where_it_was_written(tmp_path: Path) -> None:
    closed = ClosedRound(tmp_path, (TensorSpec("b", (3,)), TensorSpec("c", (1,)), TensorSpec("a", (2, 2))), 1)
    file, values = model_file(closed.task), np.arange(8, dtype=np.float32)
    with closed.blobs.writer() as writer:
        writer.write(file.header)
        for first in (5, 2, 0):
            file.write(writer, first, values[first : first + 3])
        writer.commit("whole")
    file.check(closed.blobs, "whole")
    for first in range(8):
        for count in range(8 - first):
            read = file.read(closed.blobs, "whole", first, count)
            np.testing.assert_array_equal(read, values[first : first + count])


def test_a_file_of_another_kind_is_damaged(tmp_path: Path) -> None:
    closed = ClosedRound(tmp_path, OUT_OF_ORDER, 1)
    with expect_problem(MALFORMED):
        TensorFile({"w": (1,)}, np.int64).check(closed.blobs, model_blob(closed.task.id, closed.base.sha256))


OPENING = """
import json, os, sys
from pathlib import Path
from he_bench.memory import PeakMemory
from he_protocol.config import TensorSpec
from tests.support.closed_round import ClosedRound

root, length, plan = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
ClosedRound(root / "small", (TensorSpec("w", (10,)),), 2, **plan).open()  # loads the kernels
closed = ClosedRound(root / "large", (TensorSpec("w", (length,)),), 2, **plan)
closed.forget()
watch = PeakMemory([os.getpid()])
closed.open()
print(watch.above())
"""


@pytest.mark.parametrize(
    ("length", "plan"),
    [(5_000_000, {}), pytest.param(500_000, {"scheme": "ckks", "profile": "ckks-8192"}, marks=pytest.mark.long)],
    ids=["kahe-30", "ckks-8192"],
)
def test_opening_takes_a_few_megabytes_whatever_the_models_size(
    tmp_path: Path, length: int, plan: dict[str, str]
) -> None:
    """In a process of its own, by the kernel's high-water mark: of `kahe-30` the model is 20 MB, a sum 40 MB."""
    arguments = [sys.executable, "-W", "ignore", "-c", OPENING, str(tmp_path), str(length), json.dumps(plan)]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert 1 << 20 < int(found.stdout) < 32 << 20


def test_a_scalar_is_published_as_a_scalar(tmp_path: Path) -> None:
    """Through the server's files and a client's reader, byte for byte as the safetensors library has it."""
    specs = (TensorSpec("w", (2, 3)), TensorSpec("gain", ()), TensorSpec("bias", (3,)))
    closed = ClosedRound(tmp_path, specs, 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(closed.blobs.read(model_blob(closed.task.id, closed.open())))
    published = read_tensors(path, MALFORMED, "a model")
    assert {name: value.shape for name, value in published.items()} == closed.task.config.model.shapes
    assert published["gain"] != closed.model["gain"]
    assert save(published) == path.read_bytes()
    assert model_digest(published) == sha256(path.read_bytes()).digest()
