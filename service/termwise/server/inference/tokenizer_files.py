"""A model's tokenizer: from tokenizer.json, or from the files of its vocabulary as transformers makes it of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.layouts import SpecialTokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.inference.artefacts import ModelFolder


def load_tokenizer(folder: ModelFolder) -> Any:
    """Load a tokenizer that neither cuts nor pads (`tokenizers.Tokenizer`).

    Raises:
        FailedPreconditionError: a file of it is broken or lacks a token that the model needs.

    """
    from tokenizers import Tokenizer  # noqa: PLC0415 - not a need of the client's install

    first = folder.tokenizer[0]
    try:
        if first.name == "tokenizer.json":
            tokenizer = Tokenizer.from_file(str(first))
        elif first.name == "vocab.txt":
            tokenizer = _word_pieces(folder)
        else:
            tokenizer = _byte_pairs(folder)
    except FailedPreconditionError:
        raise
    except Exception as error:  # the library raises bare Exception
        names = " or ".join(file.name for file in folder.tokenizer)
        raise FailedPreconditionError(
            f"The model cannot be used: {names} is broken; download it again.", reason="MODEL_UNUSABLE"
        ) from error
    # Lengths are the caller's business: texts are cut there and never padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _word_pieces(folder: ModelFolder) -> Any:
    """Make BERT's tokenizer from its vocabulary, a token a line, and the flags of tokenizer_config.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers  # noqa: PLC0415

    settings = folder.tokenizer_config
    lines = folder.tokenizer[0].read_text(encoding="utf-8").split("\n")
    vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines) if line}
    special = _special(folder, vocabulary)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special.unknown))
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


def _byte_pairs(folder: ModelFolder) -> Any:
    """Make RoBERTa's tokenizer from its vocabulary, a JSON object, and its merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    words, merges = folder.tokenizer
    vocabulary: dict[str, int] = json.loads(words.read_text(encoding="utf-8"))
    special = _special(folder, vocabulary)
    tokenizer = Tokenizer(models.BPE.from_file(str(words), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(folder.tokenizer_config.get("add_prefix_space", False))
    )
    _frame(tokenizer, special, vocabulary)
    return tokenizer


def _special(folder: ModelFolder, vocabulary: Mapping[str, int]) -> SpecialTokens:
    """Give the names of a folder's special tokens; those that a text needs are in the vocabulary."""
    settings, defaults = folder.tokenizer_config, folder.architecture.special
    special = SpecialTokens(
        classify=_content(settings.get("cls_token"), defaults.classify),
        separate=_content(settings.get("sep_token"), defaults.separate),
        unknown=_content(settings.get("unk_token"), defaults.unknown),
        padding=_content(settings.get("pad_token"), defaults.padding),
        mask=_content(settings.get("mask_token"), defaults.mask),
    )
    for token in (special.unknown, special.classify, special.separate):
        if token not in vocabulary:
            raise FailedPreconditionError(
                f'The model cannot be used: {folder.tokenizer[0].name} lacks the token "{token}".',
                reason="MODEL_UNUSABLE",
            )
    return special


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
