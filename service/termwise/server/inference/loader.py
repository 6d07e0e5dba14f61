"""From a model's folder to an encoder that runs."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.artefacts import ModelFolder
from termwise.server.inference.base import Side
from termwise.server.inference.computing import DEVICES, PRECISIONS, Computing, refuse_device, refuse_precision
from termwise.server.inference.extraction import Weighing
from termwise.server.inference.fast import load_fast
from termwise.server.inference.files import unusable
from termwise.server.inference.fingerprints import fingerprint_sides
from termwise.server.inference.modules import NetworkPart, open_model
from termwise.server.inference.plain_folder import MODERN_BERT, PlainFolder
from termwise.server.inference.sided import SidedEncoder
from termwise.server.inference.static import StaticEncoder, StaticFolder, Table, load_table
from termwise.server.inference.text import TextTokenizer, open_tokenizer
from termwise.server.inference.torchscript.names import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from termwise.server.inference.base import Encoder, ExpansionConfig
    from termwise.server.inference.splade import SpladeEncoder

_log = logging.getLogger(__name__)

# How often log1p is applied, by a pooling's activation.
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}
_STATIC = "SparseStaticEmbedding"


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
    if (folder / ARCHIVE).is_file():
        from termwise.server.inference.torchscript.package import inspect_package  # noqa: PLC0415 - imports this module

        return inspect_package(folder, config)
    model = open_model(folder)
    config = model.complete(config)
    texts = [_load_texts(part, config) for part in model.parts]
    _check_vocabularies(texts)
    fingerprints = fingerprint_sides(model, config)
    networks = [part.folder for part in model.parts if isinstance(part, NetworkPart)]
    return ModelFacts(
        fingerprint=fingerprints[Side.DOCUMENT],
        query_fingerprint=fingerprints[Side.QUERY],
        size_bytes=sum(part.size_bytes for part in model.parts),
        architecture=networks[0].name if networks else _STATIC,
        vocabulary_size=networks[0].vocabulary if networks else len(texts[0].vocabulary),
        layout=model.layout,
        longest=texts[0].max_tokens,
        weights_bytes=sum(folder.weights_bytes for folder in networks)
        + sum(each.weights.nbytes for each in texts if isinstance(each, Table)),
        hidden=networks[0].hidden if networks else 0,
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
    if (folder / ARCHIVE).is_file():
        from termwise.server.inference.torchscript.package import load_package  # noqa: PLC0415 - imports this module

        return load_package(folder, config, threads=threads, precision=precision, cache=cache, device=device)
    # One worker is one thread of work: the tokenizer's own pool would take the other workers' processors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model = open_model(folder)
    config = model.complete(config)
    texts = [_load_texts(part, config) for part in model.parts]
    _check_vocabularies(texts)
    fingerprints = fingerprint_sides(model, config)
    computing = Computing(threads, precision, cache, device)
    encoders: list[Encoder] = []
    for part, text in zip(model.parts, texts, strict=True):
        if isinstance(part, NetworkPart) and isinstance(text, TextTokenizer):
            encoders.append(_load_network(part, config, text, fingerprints, computing))
        elif isinstance(text, Table):
            encoders.append(StaticEncoder(text, config, fingerprints))
    return encoders[0] if len(encoders) == 1 else SidedEncoder(*encoders)


def _load_texts(part: NetworkPart | StaticFolder, config: ExpansionConfig) -> TextTokenizer | Table:
    """Load what cuts a part's texts, and of a table all there is."""
    return open_tokenizer(part.folder, config) if isinstance(part, NetworkPart) else load_table(part, config)


def _load_network(
    part: NetworkPart,
    config: ExpansionConfig,
    tokenizer: TextTokenizer,
    fingerprints: dict[Side, str],
    computing: Computing,
) -> SpladeEncoder:
    """Load a network into the fast path, or where that does not know it or answers otherwise, into the plain one."""
    logarithms, summed = _LOGARITHMS[part.pooling.activation], part.pooling.strategy == "sum"
    muted = tokenizer.special_ids if part.pooling.muted else frozenset()
    weighing = Weighing(0 if summed else logarithms, muted)
    if isinstance(part.folder, ModelFolder) and not summed:
        try:
            return load_fast(part.folder, config, tokenizer, fingerprints, computing, weighing)
        except FailedPreconditionError as error:
            # What was asked for is had or refused.
            if error.reason_code != "PARITY_FAILED" or computing.precision not in {"auto", "float32"}:
                raise
            _log.warning("the fast path is not used: %s", error.message)
    if isinstance(part.folder, PlainFolder) and part.folder.name == MODERN_BERT and not summed:
        from termwise.server.inference.modern import load_modern  # noqa: PLC0415 - imports torch

        encoder = load_modern(part.folder, config, tokenizer, fingerprints, computing, weighing)
        if encoder is not None:
            return encoder
    from termwise.server.inference.plain_network import load_plain  # noqa: PLC0415 - imports torch

    return load_plain(
        part.folder.path, config, tokenizer, fingerprints, computing, weighing, logarithms if summed else 0
    )


def _check_vocabularies(texts: Sequence[TextTokenizer | Table]) -> None:
    """Refuse sides whose tokens have different ids: their vectors would share tokens by chance."""
    if len(texts) == 1:
        return
    first, last = texts[0].vocabulary, texts[-1].vocabulary
    pairs = enumerate(zip(first, last, strict=False))
    differing = next((number for number, (left, right) in pairs if left != right), None)
    if differing is not None:
        raise unusable(
            f'the tokenizers of its sides do not belong together: token {differing} is "{first[differing]}" for '
            f'documents and "{last[differing]}" for queries'
        )
