"""Weights out of safetensors files, without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.artefacts import open_folder
from termwise.server.inference.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from termwise.server.inference.artefacts import ModelFolder


@pytest.fixture
def opened(make_model: Callable[..., Path]) -> ModelFolder:
    return open_folder(make_model())


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool],
)
def test_every_kind_of_number_is_read_as_torch_reads_it(
    opened: ModelFolder, tmp_path: Path, dtype: torch.dtype
) -> None:
    made = torch.tensor([[0, 1, -1.5, 3.1415926], [65504, 1e-7, -0.0, 100]])
    kept = {"first": made.abs().clamp(max=100).to(dtype), "nothing": torch.zeros(0, 3, dtype=dtype)}
    kept |= {"last": torch.ones((), dtype=dtype)}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})

    found = read_weights(replace(opened, weights=(tmp_path / "model.safetensors",)))

    assert found.keys() == kept.keys()
    for name, tensor in kept.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor.to(torch.float32).numpy())


def test_a_kind_of_number_that_is_not_read_is_named(opened: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"small": torch.ones(2, dtype=torch.float8_e4m3fn)}, file)

    with pytest.raises(FailedPreconditionError, match=r'"small" is stored as F8_E4M3'):
        read_weights(replace(opened, weights=(file,)))


def test_a_file_that_was_cut_after_it_was_opened_is_named(opened: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + bytes(16)
    for size in (0, 4, 12, len(whole) - 3):
        file.write_bytes(whole[:size])
        with pytest.raises(FailedPreconditionError, match=r"model\.safetensors is not a safetensors file"):
            read_weights(replace(opened, weights=(file,)))
