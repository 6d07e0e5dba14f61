"""From a model's folder to an encoder that runs."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError, FieldViolation
from termwise.server.inference.architectures import current_name
from termwise.server.inference.artefacts import ModelFolder, open_folder
from termwise.server.inference.base import Encoder, ExpansionConfig, Side
from termwise.server.inference.fingerprints import fingerprint_sides
from termwise.server.inference.text import TextTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from termwise.server.inference.networks import Network

_log = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")


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
    tokenizer = TextTokenizer(opened, config)
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
        raise _refused(f'"{precision}" is unknown', "PRECISION_UNKNOWN")
    if device not in DEVICES:
        raise _no_device(f'device: "{device}" is unknown; use one of {", ".join(DEVICES)}.')
    opened = open_folder(folder)
    # One worker is one thread of work: the tokenizer's own pool would take the other workers' processors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = TextTokenizer(opened, config)
    fingerprints = fingerprint_sides(opened, config)
    from termwise.server.inference.hardware import set_compute_threads  # noqa: PLC0415 - imports torch
    from termwise.server.inference.parity import Judge  # noqa: PLC0415 - imports torch
    from termwise.server.inference.plain import plain_weights  # noqa: PLC0415 - imports torch
    from termwise.server.inference.splade import SpladeEncoder  # noqa: PLC0415 - imports torch

    make_networks, able, where = _choose_device(device)
    choices = [precision]
    if precision == "auto":
        choices = ["bfloat16", "float32"] if "bfloat16" in able else ["float32"]
    elif precision not in able:
        raise _refused(f"{where} does not compute in {precision}", "PRECISION_UNSUPPORTED")
    tensors = _read_tensors(opened)
    set_compute_threads(threads)
    judge = Judge(tokenizer, fingerprints[Side.DOCUMENT], cache, partial(plain_weights, opened))
    refusal: str | None = None
    failure: Exception | None = None
    for choice, make in ((each, maker) for each in choices for maker in make_networks(opened, tensors, each)):
        try:
            network = make()
            encoder = SpladeEncoder(config, tokenizer, fingerprints, network, choice)
            problem = judge.compare(encoder)
        except (RuntimeError, MemoryError) as error:
            # A product that this processor or build of torch lacks, or memory: the next network may do without.
            _log.warning("encoder in %s does not run here", choice, exc_info=error)
            failure = error
            continue
        if problem is None:
            _log.info("encoder in %s by %s", choice, network.kernel)
            return encoder
        _log.warning("encoder in %s by %s is refused: %s", choice, network.kernel, problem)
        refusal = problem
    if refusal is None and failure is not None:
        raise _does_not_run(choices[-1], failure) from failure
    if choices[-1] != "float32":
        raise _refused(f"this model's vectors in it differ too much from the exact ones ({refusal})", "PARITY_FAILED")
    raise FailedPreconditionError(
        f"The model's vectors differ from those of plain transformers ({refusal}); it cannot be served.",
        reason="PARITY_FAILED",
        metadata={"architecture": opened.architecture.name},
    ) from failure


def _does_not_run(precision: str, error: Exception) -> FailedPreconditionError:
    """Make the error for a model that no network computes, from what the last one raised."""
    # torch has no type for the processor's memory, and one that is a RuntimeError for a device's.
    if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error):
        return FailedPreconditionError(
            "The model does not run here: out of memory; free some, or use a smaller model.",
            reason="MODEL_DOES_NOT_RUN",
        )
    why = f"the model does not run in {precision} here ({type(error).__name__}); the server's log says more"
    if precision != "float32":
        return _refused(why, "MODEL_DOES_NOT_RUN")
    return FailedPreconditionError(f"{why[0].upper()}{why[1:]}.", reason="MODEL_DOES_NOT_RUN")


def _choose_device(device: str) -> tuple[Callable[..., Iterable[Callable[[], Network]]], set[str], str]:
    """Give what makes networks on a device, the precisions that they compute in there, and the device in words."""
    from termwise.server.inference import device as devices  # noqa: PLC0415 - imports torch
    from termwise.server.inference.hardware import has_bfloat16  # noqa: PLC0415
    from termwise.server.inference.networks import has_int8, make_networks  # noqa: PLC0415

    cuda = devices.cuda_device() if device != "cpu" else None
    if cuda is None:
        if device == "cuda":
            raise _no_device("device: There is no CUDA device that torch can use; set auto or cpu.")
        able = {"float32"} | ({"bfloat16"} if has_bfloat16() else set()) | ({"int8"} if has_int8() else set())
        return make_networks, able, "this processor"

    def make(folder: ModelFolder, tensors: Mapping[str, Tensor], precision: str) -> list[Callable[[], Network]]:
        return [lambda: devices.DeviceNetwork(folder, tensors, precision, cuda)]

    return make, {"float32"} | ({"bfloat16"} if devices.cuda_has_bfloat16() else set()), "this CUDA device"


def _no_device(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, reason="DEVICE_UNSUPPORTED")


def _refused(why: str, reason: str) -> FailedPreconditionError:
    """Make the error for a precision that cannot be had."""
    sentence = f"{why[0].upper()}{why[1:]}; use AUTO or FLOAT32."
    return FailedPreconditionError(
        f"precision: {sentence}", reason=reason, violations=[FieldViolation("precision", sentence)]
    )


def _read_tensors(folder: ModelFolder) -> dict[str, Tensor]:
    """Read all weights into memory as float32, under today's names."""
    import torch  # noqa: PLC0415 - slow to import
    from safetensors import safe_open  # noqa: PLC0415 - not a need of the client's install

    tensors: dict[str, Tensor] = {}
    for file in folder.weights:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                # A copy: the file may be replaced while its map is in use.
                tensors[current_name(name)] = stored.get_tensor(name).to(torch.float32, copy=True)
    return tensors
