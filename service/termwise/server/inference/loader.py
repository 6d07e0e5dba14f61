"""From a model's folder to an encoder that runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from termwise.server.inference.artefacts import open_folder
from termwise.server.inference.base import Side
from termwise.server.inference.computing import DEVICES, PRECISIONS, Computing, refuse_device, refuse_precision
from termwise.server.inference.fast import load_fast
from termwise.server.inference.fingerprints import fingerprint_sides
from termwise.server.inference.text import open_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.inference.base import Encoder, ExpansionConfig


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What can be told of a model without running it.

    `size_bytes` is that of the files that the encoder reads. `layout` is "transformers", "sparse_encoder", "doc_only"
    or "torchscript"; `longest`: tokens of the longest text, as `max_tokens` resolves; `weights_bytes`: the size of the
    parameters in float32; `hidden`: the width of a layer. A figure that is not known is 0.
    """

    fingerprint: str
    query_fingerprint: str
    size_bytes: int
    architecture: str
    vocabulary_size: int
    layout: str = ""
    longest: int = 0
    weights_bytes: int = 0
    hidden: int = 0
    sides_differ: bool = False


def inspect_model(folder: Path, config: ExpansionConfig) -> ModelFacts:
    """Check that a model's folder can be loaded, and tell what it holds. Blocking; needs no torch.

    Raises:
        FailedPreconditionError: it cannot be used; the message is one sentence that names the file and the problem.

    """
    opened = open_folder(folder)
    tokenizer = open_tokenizer(opened, config)
    fingerprints = fingerprint_sides(opened, config)
    return ModelFacts(
        fingerprint=fingerprints[Side.DOCUMENT],
        query_fingerprint=fingerprints[Side.QUERY],
        size_bytes=opened.size_bytes,
        architecture=opened.architecture.name,
        vocabulary_size=opened.dimensions.vocabulary,
        layout="transformers",
        longest=tokenizer.max_tokens,
        weights_bytes=opened.weights_bytes,
        hidden=opened.dimensions.hidden,
        sides_differ=fingerprints[Side.DOCUMENT] != fingerprints[Side.QUERY],
    )


def load_encoder(
    folder: Path,
    config: ExpansionConfig,
    *,
    threads: int = 1,
    precision: str = "auto",
    cache: Path | None = None,
    device: str = "auto",
) -> Encoder:
    """Load a model and check it against plain transformers. Blocking: call it in a thread of its own.

    Args:
        folder: the model's files.
        config: how texts become weighted tokens.
        threads: processor threads of the check.
        precision: "float32", "bfloat16", "int8", or "auto": bfloat16 where the processor computes with it and the model
            passes the check in it, float32 otherwise.
        cache: folder that keeps the verdicts of the check; None checks each time.
        device: "cpu", "cuda", or "auto": a CUDA device where there is one.

    Raises:
        FailedPreconditionError: the model cannot be used or does not run here, its vectors differ from those of plain
            transformers, or the device or the precision cannot be had; the error then names the setting or field and
            what to use.

    """
    if precision not in PRECISIONS:
        raise refuse_precision(f'"{precision}" is unknown', "PRECISION_UNKNOWN")
    if device not in DEVICES:
        raise refuse_device(f'"{device}" is unknown; use one of {", ".join(DEVICES)}.')
    opened = open_folder(folder)
    # One worker is one thread of work: the tokenizer's own pool would take the other workers' processors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = open_tokenizer(opened, config)
    fingerprints = fingerprint_sides(opened, config)
    return load_fast(opened, config, tokenizer, fingerprints, Computing(threads, precision, cache, device))
