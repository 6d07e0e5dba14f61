"""A model's folder that holds a package in ELSER's layout: from its three files to an encoder."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import Side
from termwise.server.inference.computing import Computing, refuse_device, refuse_precision
from termwise.server.inference.extraction import Weighing
from termwise.server.inference.findings import is_known, remember
from termwise.server.inference.hardware import set_compute_threads
from termwise.server.inference.loader import ModelFacts
from termwise.server.inference.text import TextRules, TextTokenizer
from termwise.server.inference.torchscript import rehosting
from termwise.server.inference.torchscript.archive import Archive
from termwise.server.inference.torchscript.copying import copied
from termwise.server.inference.torchscript.metadata import read_metadata
from termwise.server.inference.torchscript.names import ARCHIVE, METADATA, VOCABULARY
from termwise.server.inference.torchscript.objects import check_objects
from termwise.server.inference.torchscript.pickles import PACKED, Made, Tensor, read_pickle, walk
from termwise.server.inference.torchscript.refusals import unsafe, unusable
from termwise.server.inference.torchscript.source import check_source
from termwise.server.inference.torchscript.trial import try_out
from termwise.server.inference.torchscript.vocabulary import Vocabulary, make_tokenizer, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from termwise.server.inference.base import Encoder, ExpansionConfig
    from termwise.server.inference.torchscript.metadata import PackageMetadata
    from termwise.server.inference.torchscript.program import Program

_log = logging.getLogger(__name__)

_MOST_NODES: Final = 1_000_000
_LEAST_TOKENS: Final = 3
_FLOAT32_BYTES: Final = 4
# Names how a package's answer becomes weights; another way must get another name.
_POOLING: Final = "package"
# What keeps a model that could be re-hosted from it, and leaves the archive itself to run.
_AS_IT_IS: Final = frozenset({"PARITY_FAILED", "MODEL_DOES_NOT_RUN", "PRECISION_UNSUPPORTED", "DEVICE_UNSUPPORTED"})


@dataclass(frozen=True)
class Package:
    """A package whose files are all there, and whose archive was looked through. `config` is the model's, resolved.

    `weights_bytes` is the size of all tensors in float32, `precision` what the archive computes in. `host` is how the
    fast encoder would run it, None where it does not know the architecture.
    """

    path: Path
    metadata: PackageMetadata
    config: ExpansionConfig
    vocabulary: Vocabulary
    tokenizer: TextTokenizer
    weights_bytes: int
    precision: str
    host: rehosting.Host | None

    @cached_property
    def fingerprints(self) -> dict[Side, str]:
        """Each side's fingerprint: the archive, the vocabulary, how texts are cut, pooling, prefix and term limit."""
        tokenization, config = self.metadata.tokenization, self.config
        shared = {
            "archive": _file_digest(self.path / ARCHIVE),
            "vocabulary": _digest([self.vocabulary.tokens, self.vocabulary.merges, self.vocabulary.scores]),
            "tokenizer": [
                tokenization.kind,
                tokenization.do_lower_case,
                tokenization.with_special_tokens,
                tokenization.add_prefix_space,
            ],
            "pooling": [_POOLING, self.metadata.expansion_type],
            "max_tokens": self.tokenizer.max_tokens,
            "min_weight": config.min_weight,
        }
        sides = {
            Side.DOCUMENT: {"prefix": config.document_prefix, "max_terms": config.document_max_terms},
            Side.QUERY: {"prefix": config.query_prefix, "max_terms": config.query_max_terms},
        }
        return {side: f"sha256:{_digest({**shared, **own})}" for side, own in sides.items()}


def inspect_package(folder: Path, config: ExpansionConfig) -> ModelFacts:
    """Check that a package can be loaded, and tell what it holds. Blocking; loads nothing and needs no torch.

    Raises:
        FailedPreconditionError: it cannot be used; the message is one sentence that names the problem.

    """
    package = open_package(folder, config)
    fingerprints = package.fingerprints
    host = package.host
    return ModelFacts(
        fingerprint=fingerprints[Side.DOCUMENT],
        query_fingerprint=fingerprints[Side.QUERY],
        size_bytes=sum((folder / name).stat().st_size for name in (ARCHIVE, METADATA, VOCABULARY)),
        architecture=host.folder.architecture.name if host else "TorchScript",
        vocabulary_size=len(package.vocabulary.tokens),
        layout="torchscript",
        longest=package.tokenizer.max_tokens,
        weights_bytes=package.weights_bytes,
        hidden=host.folder.dimensions.hidden if host else 0,
        sides_differ=fingerprints[Side.DOCUMENT] != fingerprints[Side.QUERY],
    )


def load_package(
    folder: Path,
    config: ExpansionConfig,
    *,
    threads: int = 1,
    precision: str = "auto",
    cache: Path | None = None,
    device: str = "auto",
) -> Encoder:
    """Load a package into the fast encoder where that answers as the archive does, and else run the archive.

    Blocking: call it in a thread of its own. For the arguments see `loader.load_encoder`; where there is a `cache`, an
    archive first runs in a process of its own (see `trial`), once.

    Raises:
        FailedPreconditionError: the package cannot be used or does not run here, or the device or the precision
            cannot be had.

    """
    package = open_package(folder, config)
    # One worker is one thread of work: the tokenizer's own pool would take the other workers' processors.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = _Runs(package, cache, threads)
    asked = (package.fingerprints[Side.DOCUMENT], precision, device)
    if package.host is not None and not is_known(cache, "as-it-is", *asked):
        try:
            return rehosting.load(package, runs.weights, Computing(threads, precision, cache, device))
        except FailedPreconditionError as error:
            if error.reason_code not in _AS_IT_IS:
                raise
            if precision not in {"auto", package.precision} or device == "cuda":
                raise
            _log.warning("the archive runs as it is: %s", error.message)
            if error.reason_code == "PARITY_FAILED":
                remember(cache, "as-it-is", *asked)
    if device == "cuda":
        raise refuse_device("This TorchScript model runs on the processor alone; set auto or cpu.")
    if precision not in {"auto", package.precision}:
        raise refuse_precision(f"this TorchScript model computes in {package.precision}", "PRECISION_UNSUPPORTED")
    from termwise.server.inference.splade import SpladeEncoder  # noqa: PLC0415

    # The archive's answers are weights already.
    weighing = Weighing(logarithms=0)
    return SpladeEncoder(
        package.config, package.tokenizer, package.fingerprints, runs.program, package.precision, weighing
    )


class _Runs:
    """The archive's own program, loaded when it is first asked for."""

    def __init__(self, package: Package, cache: Path | None, threads: int) -> None:
        self._package = package
        self._cache = cache
        self._threads = threads

    @cached_property
    def program(self) -> Program:
        from termwise.server.inference.torchscript.program import Program  # noqa: PLC0415 - imports torch

        # After that: what is set before torch is there does not reach it.
        set_compute_threads(self._threads)
        package = self._package
        size, longest = len(package.vocabulary.tokens), package.tokenizer.max_tokens
        if self._cache is not None:
            try_out(package.path, size, longest, package.fingerprints[Side.DOCUMENT], self._cache)
        with copied(package.path / ARCHIVE) as copy:
            return Program(copy, package.metadata, size, longest)

    def weights(self, texts: Any) -> list[Any]:
        return [self.program.weights(ids) for ids in texts]


def open_package(folder: Path, config: ExpansionConfig) -> Package:
    """Read a package's files, and look through its archive without loading any of it.

    Raises:
        FailedPreconditionError: see `inspect_package`.

    """
    for name in (METADATA, VOCABULARY, ARCHIVE):
        if not (folder / name).is_file():
            raise unusable(f"{name} is missing; download it again")
    metadata = read_metadata((folder / METADATA).read_bytes())
    resolved = metadata.expansion(config)
    vocabulary = read_vocabulary(folder / VOCABULARY)
    with Archive(folder / ARCHIVE) as archive:
        code = {name: archive.read(name) for name in archive.code}
        definitions = check_source(code)
        if definitions.largest() > _MOST_NODES:
            raise unsafe(f"its code comes to more than {_MOST_NODES} steps when its calls are unfolded")
        steps = itertools.count()
        pickled = {name: _read(archive, name, steps) for name in archive.pickles}
    check_objects(pickled, definitions)
    state = {path: part for path, part in walk(pickled["data.pkl"]) if isinstance(part, Tensor)}
    # A frozen model keeps its weights among the constants.
    parts = [part for name in ("data.pkl", "constants.pkl") for _, part in walk([name, pickled[name]])]
    packed = any(isinstance(part, Made) and part.kind == PACKED for part in parts)
    weights_bytes = _FLOAT32_BYTES * sum(tensor.count for tensor in _distinct(parts))
    host = rehosting.find_host(folder, state, code, len(vocabulary.tokens))
    longest = metadata.tokenization.max_sequence_length
    if host is not None:
        longest = min(longest, host.folder.dimensions.longest)
    rules = TextRules(
        _max_tokens(config, longest),
        resolved.document_prefix,
        resolved.query_prefix,
        truncate=resolved.truncate,
        special=metadata.tokenization.with_special_tokens,
    )
    tokenizer = TextTokenizer(make_tokenizer(vocabulary, metadata.tokenization), len(vocabulary.tokens), rules)
    precision = "int8" if packed else "float32"
    return Package(folder, metadata, resolved, vocabulary, tokenizer, weights_bytes, precision, host)


def _read(archive: Archive, name: str, steps: Iterator[int]) -> Any:
    return read_pickle(archive.read(name), name, lambda key: archive.stored(name, key), steps)


def _max_tokens(config: ExpansionConfig, longest: int) -> int:
    if config.max_tokens and not _LEAST_TOKENS <= config.max_tokens <= longest:
        raise FailedPreconditionError(
            f"max_tokens is {config.max_tokens}; this model takes {_LEAST_TOKENS} to {longest}.",
            reason="MAX_TOKENS_OUT_OF_RANGE",
            metadata={"limit": str(longest), "actual": str(config.max_tokens)},
        )
    return config.max_tokens or longest


def _distinct(parts: Iterable[Any]) -> list[Tensor]:
    """Give each tensor once that has several names."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return list({(each.dtype, each.key, each.offset, each.shape): each for each in tensors}.values())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
