"""Sides without a network: each distinct token of a text has the weight that a table gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.server.inference.architectures import MOST_TOKENS
from termwise.server.inference.base import NO_TURN, Expansion, Side, TokenizedText
from termwise.server.inference.extraction import Vocabulary, Weighing, weigh
from termwise.server.inference.files import find_weights, label, read_json, read_shapes, total_size, unusable
from termwise.server.inference.layouts import SpecialTokens
from termwise.server.inference.text import TextRules, TextTokenizer, resolve_max_tokens
from termwise.server.inference.tokenizer_files import load_tokenizer, too_many_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from termwise.server.inference.base import ExpansionConfig

_WEIGHT: Final = "weight"
_WEIGHING: Final = Weighing(logarithms=0)
# Nothing limits a text that is looked up but the tokenizer's own setting.
_NO_LIMIT: Final = 1 << 20
_NO_IDS: Final = np.empty(0, dtype=np.int64)
_NO_WEIGHTS: Final = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class StaticFolder:
    """The files of a table: a safetensors file with one tensor, or a JSON object of tokens and weights."""

    path: Path
    table: Path
    tokenizer: tuple[Path, ...]
    tokenizer_config: dict[str, Any]
    vocabulary: int
    """Tokens at the most, until the table is read."""
    longest: int = _NO_LIMIT
    lowercase: bool = False
    special: SpecialTokens = field(default_factory=SpecialTokens)

    @property
    def size_bytes(self) -> int:
        """Size of the files that are read."""
        return total_size({self.table, *self.tokenizer, self.path / "config.json", self.path / "tokenizer_config.json"})


def open_static(path: Path, root: Path, *, idf: Path | None = None) -> StaticFolder:
    """Find the files of a table: sentence-transformers' SparseStaticEmbedding, or `idf` with the tokenizer of `path`.

    Raises:
        FailedPreconditionError: a file is missing or broken, or the table is a pickle.

    """
    table, size = idf, MOST_TOKENS
    if table is None:
        settings = path / "config.json"
        stated = (read_json(settings, root) if settings.is_file() else {}).get("path")
        if isinstance(stated, str) and stated.endswith(".json"):
            table = _beside(PurePosixPath(stated.replace("\\", "/")).name, path, root)
        else:
            table, size = _find_table(path, root)
    tokenizer = next((each for name in ("tokenizer.json", "vocab.txt") if (each := path / name).is_file()), None)
    if tokenizer is None:
        raise unusable(f"{label(path / 'tokenizer.json', root)} is missing; add it")
    tokenizer_settings = path / "tokenizer_config.json"
    stated_settings = read_json(tokenizer_settings, root) if tokenizer_settings.is_file() else {}
    return StaticFolder(path, table, (tokenizer,), stated_settings, size)


def _beside(name: str, path: Path, root: Path) -> Path:
    """Find a table by its name, in its module's folder or at the top of the model's."""
    for file in (path / name, root / name):
        if file.is_file():
            return file
    raise unusable(f"{name} is missing, which {label(path / 'config.json', root)} names")


def _find_table(path: Path, root: Path) -> tuple[Path, int]:
    table = find_weights(path)[0]
    shape = read_shapes(table).get(_WEIGHT)
    if shape is None or len(shape) != 1 or not 0 < shape[0] <= MOST_TOKENS:
        raise unusable(f'{label(table, root)} lacks the tensor "{_WEIGHT}", a weight for each token')
    return table, shape[0]


def _read_weights(folder: StaticFolder, tokenizer: Any) -> NDArray[np.float32]:
    """Read the weight of each token, by id. Tokens that an idf.json has and the tokenizer lacks play no part.

    Raises:
        FailedPreconditionError: the table is broken, or is another tokenizer's.

    """
    known: int = tokenizer.get_vocab_size(with_added_tokens=True)
    if folder.table.suffix == ".json":
        return _read_idf(folder, tokenizer, known)
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - not a need of the client's install

    try:
        with safe_open(folder.table, framework="np") as stored:
            weights = np.asarray(stored.get_tensor(_WEIGHT)).astype(np.float32)
    except (SafetensorError, OSError, TypeError, KeyError, AttributeError) as error:
        raise unusable(f"{folder.table.name} does not hold weights as float32 or float16") from error
    if known > len(weights):
        raise too_many_tokens(known, len(weights))
    if not np.isfinite(weights).all():
        raise unusable(f"{folder.table.name} holds a weight that is not a number")
    return weights


def _read_idf(folder: StaticFolder, tokenizer: Any, known: int) -> NDArray[np.float32]:
    name = folder.table.name
    stated = read_json(folder.table)
    if known > MOST_TOKENS or len(stated) > MOST_TOKENS:
        raise too_many_tokens(max(known, len(stated)), MOST_TOKENS)
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    weights = np.zeros(max(ids.values(), default=-1) + 1, dtype=np.float32)
    found = 0
    for token, weight in stated.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise unusable(f'{name} gives the token "{token[:40]}" no number')
        number = ids.get(token)
        if number is not None:
            weights[number] = weight
            found += 1
    if not found:
        raise unusable(f"{name} holds none of the tokenizer's tokens; they do not belong together")
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table in memory: the weight of each token by id, and what cuts texts into them."""

    weights: NDArray[np.float32]
    tokenizer: TextTokenizer

    @property
    def vocabulary(self) -> Sequence[str]:
        """The tokens' strings, by id."""
        return self.tokenizer.vocabulary

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest text."""
        return self.tokenizer.max_tokens


def load_table(folder: StaticFolder, config: ExpansionConfig) -> Table:
    """Read a table and its tokenizer.

    Raises:
        FailedPreconditionError: they are broken or do not belong together, or `max_tokens` is out of range.

    """
    tokenizer = load_tokenizer(folder)
    weights = _read_weights(folder, tokenizer)
    # Special tokens have no weight worth looking up: sentence-transformers leaves them out, OpenSearch mutes them.
    rules = TextRules(
        resolve_max_tokens(folder, config),
        config.document_prefix,
        config.query_prefix,
        truncate=config.truncate,
        special=False,
    )
    return Table(weights, TextTokenizer(tokenizer, len(weights), rules))


class StaticEncoder:
    """Gives each distinct token of a text the weight of a table; those that are not positive play no part.

    Thread-safe.
    """

    precision = "float32"
    device = "cpu"
    engine = "static"

    def __init__(self, table: Table, config: ExpansionConfig, fingerprints: dict[Side, str]) -> None:
        """Look tokens up in a table."""
        self._weights = table.weights
        self._tokenizer = table.tokenizer
        self._vocabulary = Vocabulary(table.tokenizer.vocabulary)
        self._fingerprints = fingerprints
        self._min_weight = config.min_weight
        self._max_terms = {Side.DOCUMENT: config.document_max_terms, Side.QUERY: config.query_max_terms}

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self._weights)

    @property
    def sides_differ(self) -> bool:
        """Whether documents and queries are encoded differently."""
        return self._fingerprints[Side.DOCUMENT] != self._fingerprints[Side.QUERY]

    def fingerprint(self, side: Side) -> str:
        """Identity of a side."""
        return self._fingerprints[side]

    def tokenize(self, texts: Sequence[str], side: Side) -> list[TokenizedText]:
        """Cut texts into vocabulary ids; see `Encoder.tokenize`."""
        return self._tokenizer.tokenize(texts, side)

    def encode(
        self, texts: Sequence[TokenizedText], side: Side, turn: AbstractContextManager[None] = NO_TURN
    ) -> list[Expansion]:
        """Look the tokens up; see `Encoder.encode`. There is nothing to wait one's turn for."""
        del turn
        max_terms = self._max_terms[side]
        return [self._expand(text, max_terms) for text in texts]

    def _expand(self, text: TokenizedText, max_terms: int) -> Expansion:
        if not text.ids:
            return Expansion((), _NO_IDS, _NO_WEIGHTS, 0, text.truncated)
        distinct = np.unique(np.fromiter(text.ids, np.int64, len(text.ids)))
        weights = self._weights[distinct]
        kept = weights > 0
        ids, weights = weigh(
            (distinct[kept], weights[kept]),
            self._vocabulary,
            max_terms=max_terms,
            min_weight=self._min_weight,
            weighing=_WEIGHING,
        )
        return Expansion(self._vocabulary.tokens(ids), ids, weights, len(text.ids), text.truncated)
