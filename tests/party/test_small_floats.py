"""Every bit pattern of the small floats, as PyTorch reads it; and files of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from he_party.small_floats import WIDENED
from he_party.tensors import read_tensors
from he_protocol.problems import BAD_TENSORS
from he_testing.problems import expect_problem

KINDS = {"BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@pytest.mark.parametrize("kind", WIDENED)
def test_every_pattern_is_what_pytorch_says(kind: str) -> None:
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16) if kind == "BF16" else torch.arange(256)
    bits = patterns if kind == "BF16" else patterns.to(torch.uint8)
    wide = WIDENED[kind](bits.numpy().tobytes())
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, bits.view(KINDS[kind]).float().numpy())


def test_a_file_of_them_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "update.safetensors"
    values = torch.tensor([[1.5, -2.0], [0.25, 448.0]])
    save_file({kind: values.to(KINDS[kind]) for kind in KINDS} | {"F32": values, "scalar": torch.tensor(3.0)}, file)
    read = read_tensors(file, BAD_TENSORS, "an update", widen=True)
    assert (read["scalar"].shape, read["scalar"].item()) == ((), 3.0)
    for kind in ("F32", "BF16", "F8_E4M3"):
        assert read[kind].tolist() == values.tolist()
    with expect_problem(BAD_TENSORS, "save it as float32"):
        read_tensors(file, BAD_TENSORS, "a model")
