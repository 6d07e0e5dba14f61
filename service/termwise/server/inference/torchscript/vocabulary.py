"""The vocabulary file of a package, and the tokenizer that it and the metadata make. Nothing here needs torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.layouts import SpecialTokens
from termwise.server.inference.tokenizer_files import byte_pairs, check_special, read_merges, word_pieces
from termwise.server.inference.torchscript.names import VOCABULARY_LIMIT_BYTES
from termwise.server.inference.torchscript.refusals import unusable

if TYPE_CHECKING:
    from pathlib import Path

    from termwise.server.inference.torchscript.metadata import Tokenization

_MOST_TOKENS: Final = 1_000_000
# Commas of the largest vocabulary with its scores or merges, and some in tokens themselves.
_MOST_COMMAS: Final = 2_500_000
_ANGLED: Final = SpecialTokens("<s>", "</s>", "<unk>", "<pad>", "<mask>")
# Special tokens by kind, as Elasticsearch's tokenizers name them.
_SPECIAL: Final = {
    "bert": SpecialTokens(),
    "mpnet": SpecialTokens("<s>", "</s>", "[UNK]", "<pad>", "<mask>"),
    "roberta": _ANGLED,
    "xlm_roberta": _ANGLED,
}
_SHOWN: Final = "its vocabulary file"


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What a vocabulary file holds: tokens by id, merges for pairs of bytes, scores, one a token, for unigrams."""

    tokens: list[str]
    merges: list[str]
    scores: list[float]


def read_vocabulary(file: Path) -> Vocabulary:
    """Read a vocabulary file; one that is too large is refused before it takes memory.

    Raises:
        FailedPreconditionError: it is too large or broken.

    """
    size = file.stat().st_size
    if size > VOCABULARY_LIMIT_BYTES:
        raise _too_large(f"has {size} bytes, over the {VOCABULARY_LIMIT_BYTES} that it may have")
    raw = file.read_bytes()
    if raw.count(b",") > _MOST_COMMAS:
        raise _too_large(f"holds more than {_MOST_TOKENS} tokens")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise unusable(f"{_SHOWN} is not readable JSON; download it again") from error
    if not isinstance(values, dict):
        raise unusable(f"{_SHOWN} does not hold a JSON object; download it again")
    tokens = _strings(values, "vocabulary")
    if not tokens:
        raise unusable(f'"vocabulary" of {_SHOWN} is missing or empty')
    if len(tokens) > _MOST_TOKENS:
        raise _too_large(f"holds more than {_MOST_TOKENS} tokens")
    return Vocabulary(tokens, _strings(values, "merges"), _scores(values, len(tokens)))


def make_tokenizer(vocabulary: Vocabulary, tokenization: Tokenization) -> Any:
    """Make a `tokenizers.Tokenizer` that neither cuts nor pads.

    Raises:
        FailedPreconditionError: the vocabulary lacks what this kind of tokenizer needs.

    """
    special = _SPECIAL[tokenization.kind]
    numbers = {token: number for number, token in enumerate(vocabulary.tokens)}
    check_special(special, numbers, "the vocabulary")
    for kind, key, held in (
        ("roberta", "merges", vocabulary.merges),
        ("xlm_roberta", "scores", vocabulary.scores),
    ):
        if tokenization.kind == kind and not held:
            raise unusable(f'"{key}" of {_SHOWN} is missing, which a {kind} tokenizer needs')
    try:
        if tokenization.kind == "roberta":
            settings = {"add_prefix_space": tokenization.add_prefix_space}
            return byte_pairs(numbers, read_merges(vocabulary.merges), special, settings)
        if tokenization.kind == "xlm_roberta":
            return _unigrams(vocabulary, numbers, special)
        return word_pieces(numbers, special, {"do_lower_case": tokenization.do_lower_case})
    except Exception as error:  # the library raises bare Exception
        raise unusable(f"{_SHOWN} does not make a {tokenization.kind} tokenizer") from error


def _unigrams(vocabulary: Vocabulary, numbers: dict[str, int], special: SpecialTokens) -> Any:
    """Make XLM-R's tokenizer of tokens and their scores.

    SentencePiece's own table of characters is not in a package; its rules are NFKC and a few of its own (`Nmt`), and
    runs of blanks are one.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415

    weighed = list(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    tokenizer = Tokenizer(models.Unigram(weighed, unk_id=numbers[special.unknown]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(
        (special.separate, numbers[special.separate]), (special.classify, numbers[special.classify])
    )
    plain = (special.classify, special.padding, special.separate, special.unknown)
    tokenizer.add_special_tokens([each for each in plain if each in numbers])
    if special.mask in numbers:
        tokenizer.add_special_tokens([AddedToken(special.mask, lstrip=True, special=True)])
    return tokenizer


def _strings(values: dict[str, Any], key: str) -> list[str]:
    held = values.get(key)
    if held is None:
        return []
    if not isinstance(held, list) or not all(isinstance(each, str) for each in held):
        raise unusable(f'"{key}" of {_SHOWN} is not a list of strings')
    return held


def _scores(values: dict[str, Any], count: int) -> list[float]:
    held = values.get("scores")
    if not held:
        return []
    if not isinstance(held, list) or len(held) != count:
        raise unusable(f'"scores" of {_SHOWN} is not a list of one number a token')
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in held):
        raise unusable(f'"scores" of {_SHOWN} holds what is not a number')
    return [float(each) for each in held]


def _too_large(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The model's package cannot be used: {_SHOWN} {problem}.", reason="VOCABULARY_TOO_LARGE"
    )
