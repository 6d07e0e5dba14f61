"""An archive's first run, in a process of its own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from archives import replace_archive, save
from elser_package import as_model_folder, tiny_package
from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.loader import load_encoder
from termwise.server.inference.torchscript.trial import try_out

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class NeverEnds(torch.nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        answer = torch.zeros(14)
        while bool(answer.sum() < 1):
            answer = answer * 2
        return answer


class TakesAll(torch.nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.ones(1 << 36).sum() + torch.zeros(14)


class Answers(torch.nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, types: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        return torch.ones(13)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return as_model_folder(tiny_package(tmp_path / "package"), tmp_path / "model")


def test_a_model_that_never_ends_is_given_up(folder: Path, tmp_path: Path) -> None:
    replace_archive(folder, save(torch.jit.script(NeverEnds())))
    with pytest.raises(FailedPreconditionError, match="512 tokens within 3 s"):
        try_out(folder, 14, 512, "f", tmp_path, seconds=3)


def test_a_model_that_takes_all_memory_fails_elsewhere(folder: Path, tmp_path: Path) -> None:
    replace_archive(folder, save(torch.jit.script(TakesAll())))
    with pytest.raises(FailedPreconditionError, match=r"memory|allocate"):
        load_encoder(folder, ExpansionConfig(), cache=tmp_path / "cache")


def test_a_refusal_is_the_one_that_it_would_have_been_here(folder: Path, tmp_path: Path) -> None:
    replace_archive(folder, save(torch.jit.script(Answers())))
    with pytest.raises(FailedPreconditionError, match="14 tokens") as here:
        load_encoder(folder, ExpansionConfig())
    with pytest.raises(FailedPreconditionError) as elsewhere:
        load_encoder(folder, ExpansionConfig(), cache=tmp_path / "cache")
    assert elsewhere.value.message == here.value.message
    assert elsewhere.value.reason_code == here.value.reason_code


def test_a_model_is_tried_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_encoder(folder, ExpansionConfig(), cache=tmp_path / "cache")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert load_encoder(folder, ExpansionConfig(), cache=tmp_path / "cache").engine == "torchscript"
    with pytest.raises(FailedPreconditionError, match="process of its own"):
        load_encoder(folder, ExpansionConfig(max_tokens=64), cache=tmp_path / "cache")
