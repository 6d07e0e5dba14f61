"""Tokenizers whose file asks for more memory than any machine has, and other files that no answer could speak of."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.modules import open_model
from termwise.server.inference.tokenizer_limits import check_growth, check_table

if TYPE_CHECKING:
    from pathlib import Path


def tokenizer_file(folder: Path, normalizer: Any) -> Path:
    file = folder / "tokenizer.json"
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1}}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    file.write_text(json.dumps({"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}))
    return file


def table(length: int, index: bytes, replacements: bytes) -> dict[str, str]:
    held = struct.pack("<L", length) + index + replacements
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(held).decode()}


BROKEN = [
    table(0xFFFFFFFF, b"\1" * 48, b""),
    table(1 << 20, bytes(16), b"a\0"),
    table(15, bytes(16), b"a\0"),
    table(16, bytes(16), b"a" * 100_000 + b"\0"),
    {"type": "Precompiled", "precompiled_charsmap": "!"},
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_table_of_characters_that_is_not_as_long_as_it_says_is_refused(
    broken: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(FailedPreconditionError, match="table of characters"):
        check_table(tokenizer_file(tmp_path, {"type": "Sequence", "normalizers": [broken]}))


def test_an_escaped_name_hides_nothing(tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path, BROKEN[0])
    file.write_text(file.read_text().replace("Pre", "\\u0050re").replace("precompiled", "prec\\u006fmpiled"))
    with pytest.raises(FailedPreconditionError, match="table of characters"):
        check_table(file)


def test_a_whole_table_passes(tmp_path: Path) -> None:
    check_table(tokenizer_file(tmp_path, table(16, bytes(16), b"a\0bc\0")))


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    ("rules", "passes"),
    [
        ([replace("a" * 1000, String="a")] * 4, False),
        ([replace("aa", String="a")] * 9, False),
        ([replace("aa", Regex="a?")] * 9, False),
        ([replace("\u2581", Regex=" {2,}"), replace('"', String="``"), replace("\u2581", String=" ")] * 10, True),
    ],
)
def test_rules_that_multiply_are_refused(rules: list[dict[str, Any]], passes: bool, tmp_path: Path) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(str(tokenizer_file(tmp_path, {"type": "Sequence", "normalizers": rules})))
    if passes:
        check_growth(tokenizer)
    else:
        with pytest.raises(FailedPreconditionError, match="times as long"):
            check_growth(tokenizer)


def test_a_file_with_half_a_letter_is_refused(tmp_path: Path) -> None:
    # Its name would be in the error's message, which could not be sent or stored.
    (tmp_path / "modules.json").write_text('[{"type": "\\ud800", "path": ""}]')
    with pytest.raises(FailedPreconditionError) as raised:
        open_model(tmp_path)
    assert raised.value.message.encode()
