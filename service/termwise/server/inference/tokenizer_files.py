"""A model's tokenizer: from tokenizer.json, or from the files of its vocabulary as transformers makes it of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.layouts import SpecialTokens
from termwise.server.inference.tokenizer_limits import check_growth, check_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# Most bytes of a tokenizer's file: a million tokens, the most that any model has, take about half of it.
_LARGEST_FILE = 96 * 1024 * 1024


class TextSource(Protocol):
    """What a folder says of its texts."""

    @property
    def tokenizer(self) -> tuple[Path, ...]:
        """Its tokenizer.json, or the files of the vocabulary where there is none."""
        ...

    @property
    def tokenizer_config(self) -> dict[str, Any]:
        """What tokenizer_config.json says."""
        ...

    @property
    def special(self) -> SpecialTokens:
        """The names of special tokens where that does not say otherwise."""
        ...

    @property
    def vocabulary(self) -> int:
        """Tokens that the weights have room for."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model takes."""
        ...

    @property
    def lowercase(self) -> bool:
        """Whether texts are put into small letters before anything else."""
        ...


def load_tokenizer(source: TextSource) -> Any:
    """Load a tokenizer that neither cuts nor pads (`tokenizers.Tokenizer`).

    Raises:
        FailedPreconditionError: a file of it is broken, far too large, or lacks a token that the model needs.

    """
    from tokenizers import Tokenizer, normalizers  # noqa: PLC0415 - not a need of the client's install

    first = source.tokenizer[0]
    _check_size(source)
    try:
        if first.name == "tokenizer.json":
            check_table(first)
            tokenizer = Tokenizer.from_file(str(first))
            check_growth(tokenizer)
        elif first.name == "vocab.txt":
            lines = first.read_text(encoding="utf-8").split("\n")
            vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines) if line}
            tokenizer = word_pieces(vocabulary, _special(source, vocabulary), source.tokenizer_config)
        else:
            vocabulary = json.loads(first.read_text(encoding="utf-8"))
            pairs = read_merges(source.tokenizer[1].read_text(encoding="utf-8").split("\n"))
            tokenizer = byte_pairs(vocabulary, pairs, _special(source, vocabulary), source.tokenizer_config)
    except FailedPreconditionError:
        raise
    except BaseException as error:  # the library raises bare Exception
        if not is_failure(error):
            raise
        names = " or ".join(file.name for file in source.tokenizer)
        raise FailedPreconditionError(
            f"The model cannot be used: {names} is broken; download it again.", reason="MODEL_UNUSABLE"
        ) from error
    if source.lowercase:
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    # Lengths are the caller's business: texts are cut there and never padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def is_failure(error: BaseException) -> bool:
    """Tell whether an error is one of the tokenizer's. A panic in its Rust code is no Exception, and ends a thread."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_size(source: TextSource) -> None:
    """Refuse a tokenizer that would take all memory before it turned out not to be the model's."""
    for file in source.tokenizer:
        if file.stat().st_size > _LARGEST_FILE:
            raise FailedPreconditionError(
                f"The model cannot be used: {file.name} is larger than {_LARGEST_FILE >> 20} MiB.",
                reason="MODEL_UNUSABLE",
            )
    first = source.tokenizer[0]
    marks = {"vocab.txt": b"\n", "vocab.json": b'":'}
    if first.name in marks:
        # A line or a colon a token, give or take an odd one.
        count = first.read_bytes().count(marks[first.name])
        if count > 2 * source.vocabulary + 1000:
            raise too_many_tokens(count, source.vocabulary)


def too_many_tokens(known: int, size: int) -> FailedPreconditionError:
    """Make the error for a tokenizer that knows more tokens than the model has weights for."""
    return FailedPreconditionError(
        f"The model's tokenizer knows {known} tokens and its weights {size}; they do not belong together.",
        reason="MODEL_UNUSABLE",
    )


def word_pieces(vocabulary: Mapping[str, int], special: SpecialTokens, settings: Mapping[str, Any]) -> Any:
    """Make BERT's tokenizer of its vocabulary and the flags of tokenizer_config.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: PLC0415

    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token=special.unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # In MPNet's angled vocabulary the mask is a word with the blank before it.
    _frame(tokenizer, special, vocabulary, mask_takes_blank=special.mask.startswith("<"))
    return tokenizer


def byte_pairs(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], special: SpecialTokens, settings: Mapping[str, Any]
) -> Any:
    """Make RoBERTa's tokenizer of its vocabulary and its merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE(dict(vocabulary), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    _frame(tokenizer, special, vocabulary)
    return tokenizer


def read_merges(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Read the lines of merges.txt: two tokens with a blank between them; a line that names the version is none."""
    merges = []
    for line in lines:
        if line and not line.startswith("#version"):
            left, right = line.removesuffix("\r").split(" ")
            merges.append((left, right))
    return merges


def _special(source: TextSource, vocabulary: Mapping[str, int]) -> SpecialTokens:
    """Give the names of a folder's special tokens; those that a text needs are in the vocabulary."""
    settings, defaults = source.tokenizer_config, source.special
    special = SpecialTokens(
        classify=_content(settings.get("cls_token"), defaults.classify),
        separate=_content(settings.get("sep_token"), defaults.separate),
        unknown=_content(settings.get("unk_token"), defaults.unknown),
        padding=_content(settings.get("pad_token"), defaults.padding),
        mask=_content(settings.get("mask_token"), defaults.mask),
    )
    check_special(special, vocabulary, source.tokenizer[0].name)
    return special


def check_special(special: SpecialTokens, vocabulary: Mapping[str, int], name: str) -> None:
    """Refuse a vocabulary, the file `name`, without a token that every text needs."""
    for token in (special.unknown, special.classify, special.separate):
        if token not in vocabulary:
            raise FailedPreconditionError(
                f'The model cannot be used: {name} lacks the token "{token}".', reason="MODEL_UNUSABLE"
            )


def _frame(
    tokenizer: Any, special: SpecialTokens, vocabulary: Mapping[str, int], *, mask_takes_blank: bool = False
) -> None:
    """Add the special tokens, and put them around a text."""
    from tokenizers import AddedToken, processors  # noqa: PLC0415

    separate, classify = special.separate, special.classify
    tokenizer.post_processor = processors.BertProcessing(
        (separate, vocabulary[separate]), (classify, vocabulary[classify])
    )
    plain = [each for each in (special.unknown, classify, separate, special.padding) if each in vocabulary]
    tokenizer.add_special_tokens(plain)
    if special.mask in vocabulary:
        tokenizer.add_special_tokens([AddedToken(special.mask, lstrip=mask_takes_blank, special=True)])


def _content(token: Any, default: str) -> str:
    """Read a special token of tokenizer_config.json: a string, or an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else default
