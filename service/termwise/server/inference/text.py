"""Text in, vocabulary ids out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError, InvalidArgumentError
from termwise.server.inference.base import Side, TokenizedText
from termwise.server.inference.tokenizer_files import is_failure, load_tokenizer, too_many_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.tokenizer_files import TextSource

# Longest text in tokens where the configuration leaves it open (the proto's rule for `max_tokens` 0).
_DEFAULT_MAX_TOKENS = 512
# Fewest tokens that leave room for one of the text between the special ones (the proto's rule).
_LEAST_MAX_TOKENS = 3
# Characters looked at first, for each token of room: English has four to five a token, so most texts need one look.
_CHARACTERS_A_TOKEN = 8
# Tokens that the cut end of a text may turn into others: a word of over 100 characters is one unknown token in
# WordPiece.
_CUT_MARGIN = 128
# Characters of a text that are ever looked at, over 100 times the length of 512 tokens of prose. A text that does not
# fill the model by then is blanks or noise; its rest counts as cut off, so that nobody holds a worker for seconds with
# it.
_LONGEST_LOOK = 1 << 18
_NO_TOKENS = TokenizedText(())
# Texts that any tokenizer has to take: nothing, words that no vocabulary has, and characters of many kinds.
_PROBES = ("", "a", "zqxjkvb \u03a9 \u5317\u4eac \U0001f600 \x00 e\u0301", "[MASK] <mask> x" * 9)


@dataclass(frozen=True, slots=True)
class TextRules:
    """How texts are cut: at most `max_tokens` tokens, special ones included, a prefix before each.

    `truncate` False refuses longer texts; `special` False leaves the special tokens out.
    """

    max_tokens: int
    document_prefix: str = ""
    query_prefix: str = ""
    truncate: bool = True
    special: bool = True


class TextTokenizer:
    """Cuts texts as a model wants them: prefix, special tokens, length. Thread-safe."""

    def __init__(self, tokenizer: Any, vocabulary_size: int, rules: TextRules) -> None:
        """Cut by a `tokenizers.Tokenizer` that neither truncates nor pads.

        Raises:
            FailedPreconditionError: it knows more tokens than the model's vocabulary has.

        """
        self._tokenizer = tokenizer
        _probe(tokenizer)
        self._prefixes = {Side.DOCUMENT: rules.document_prefix, Side.QUERY: rules.query_prefix}
        self._truncate = rules.truncate
        self._head, self._tail = _special_ids(tokenizer) if rules.special else ([], [])
        self.max_tokens = rules.max_tokens
        self._room = max(1, self.max_tokens - len(self._head) - len(self._tail))
        self._first_look = self._room * _CHARACTERS_A_TOKEN
        self.vocabulary = _vocabulary(tokenizer, vocabulary_size)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def tokenize(self, texts: Sequence[str], side: Side, *, truncate: bool | None = None) -> list[TokenizedText]:
        """Cut texts; one without content becomes no tokens at all. `truncate` overrides what the configuration says.

        Raises:
            InvalidArgumentError: a text is too long and the configuration refuses to truncate.

        """
        prefix = self._prefixes[side]
        allowed = self._truncate if truncate is None else truncate
        whole = [prefix + text for text in texts]
        cuts = [_cut(text, self._first_look) for text in whole]
        try:
            encodings = self._tokenizer.encode_batch_fast(cuts, add_special_tokens=False)
        except BaseException as error:
            if not is_failure(error):
                raise
            raise RuntimeError("The tokenizer failed.") from error
        return [
            self._frame(prefixed, cut, encoding.ids, truncate=allowed) if text.strip() else _NO_TOKENS
            for text, prefixed, cut, encoding in zip(texts, whole, cuts, encodings, strict=True)
        ]

    def _frame(self, text: str, cut: str, ids: list[int], *, truncate: bool) -> TokenizedText:
        """Bring the ids of a text's start to the model's length, special tokens around them."""
        if len(cut) < len(text) and len(ids) < self._room + _CUT_MARGIN:
            cut, ids = self._look_further(text)
        truncated = len(ids) > self._room or len(cut) < len(text)
        if truncated:
            if not truncate:
                raise InvalidArgumentError(
                    f"A text is longer than the model's {self.max_tokens} tokens; shorten it or allow truncation.",
                    reason="TEXT_TOO_LONG",
                    metadata={"limit": str(self.max_tokens)},
                )
            del ids[self._room :]
        if not ids:
            return TokenizedText((), truncated)
        return TokenizedText([*self._head, *ids, *self._tail], truncated)

    def _look_further(self, text: str) -> tuple[str, list[int]]:
        """Look at more and more of a text whose start holds few tokens (blanks, or words of great length)."""
        look = self._first_look
        while True:
            look = min(look * 4, _LONGEST_LOOK)
            cut = _cut(text, look)
            ids: list[int] = self._tokenizer.encode_batch_fast([cut], add_special_tokens=False)[0].ids
            if len(cut) == len(text) or len(ids) >= self._room + _CUT_MARGIN or look == _LONGEST_LOOK:
                return cut, ids


def open_tokenizer(source: TextSource, config: ExpansionConfig) -> TextTokenizer:
    """Load the tokenizer of a model's folder.

    Raises:
        FailedPreconditionError: the tokenizer is broken or is not this model's, or `max_tokens` is out of range.

    """
    rules = TextRules(
        resolve_max_tokens(source, config), config.document_prefix, config.query_prefix, truncate=config.truncate
    )
    return TextTokenizer(load_tokenizer(source), source.vocabulary, rules)


def resolve_max_tokens(source: TextSource, config: ExpansionConfig) -> int:
    """Give the longest text in tokens, special ones included.

    Raises:
        FailedPreconditionError: the configuration asks for more than the model has positions, or for too few.

    """
    positions = source.longest
    if config.max_tokens:
        if not _LEAST_MAX_TOKENS <= config.max_tokens <= positions:
            raise FailedPreconditionError(
                f"max_tokens is {config.max_tokens}; this model takes {_LEAST_MAX_TOKENS} to {positions}.",
                reason="MAX_TOKENS_OUT_OF_RANGE",
                metadata={"limit": str(positions), "actual": str(config.max_tokens)},
            )
        return config.max_tokens
    own = source.tokenizer_config.get("model_max_length")
    limits = [positions, _DEFAULT_MAX_TOKENS]
    if isinstance(own, int) and own >= _LEAST_MAX_TOKENS:
        limits.append(own)
    return min(limits)


def _cut(text: str, look: int) -> str:
    """Give the first `look` characters of a text, back to a blank where there is one near, so that no word is torn."""
    if len(text) <= look:
        return text
    start = text[:look]
    torn = len(start) - len(start.rstrip())
    if torn:
        return start
    words = start.rsplit(maxsplit=1)
    return words[0] if len(words) > 1 and len(words[1]) < look // 2 else start


def _probe(tokenizer: Any) -> None:
    """Refuse a tokenizer that fails at a text, such as one that lacks the token for unknown words."""
    try:
        for special in (False, True):
            tokenizer.encode_batch_fast(list(_PROBES), add_special_tokens=special)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise FailedPreconditionError(
            "The model cannot be used: its tokenizer fails at a text; download it again.", reason="MODEL_UNUSABLE"
        ) from error


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Give the ids that the tokenizer puts before and after a text."""
    plain: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
    framed: list[int] = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    raise FailedPreconditionError(
        "The model's tokenizer changes a text where it adds special tokens, which is not supported.",
        reason="MODEL_UNUSABLE",
    )


def _vocabulary(tokenizer: Any, size: int) -> list[str]:
    """Give every token's string by id; ids that the tokenizer leaves without one (padding of the matrix) get a name."""
    count: int = tokenizer.get_vocab_size(with_added_tokens=True)
    if count > size:
        raise too_many_tokens(count, size)
    known: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if known and max(known.values()) >= size:
        raise too_many_tokens(max(known.values()) + 1, size)
    strings = [f"[id{number}]" for number in range(size)]
    for token, number in known.items():
        strings[number] = token
    return strings
