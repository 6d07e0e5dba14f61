"""What a package in ELSER's layout says of itself."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.inference.torchscript.metadata import PackageMetadata, Tokenization, read_metadata

FULL = {
    "packaged_model_id": "elser_model_2",
    "minimum_version": "11.0.0",
    "size": 438123914,
    "sha256": "AB" * 32,
    "description": "Elastic Learned Sparse EncodeR v2",
    "model_type": "pytorch",
    "tags": ["elastic"],
    "vocabulary_file": "elser_model_2.vocab.json",
    "platform_architecture": "linux-x86_64",
    "prefix_strings": {"ingest": "passage: ", "search": "query: "},
    "inference_config": {
        "text_expansion": {
            "tokenization": {
                "mpnet": {"do_lower_case": True, "max_sequence_length": 128, "truncate": "none", "span": 64}
            },
            "results_field": "tokens",
        }
    },
    "metadata": {"per_deployment_memory_bytes": 1},
    "something_new": [1, 2, 3],
}


def read(**values: Any) -> PackageMetadata:
    return read_metadata(json.dumps(values).encode())


def test_all_keys_are_read_and_unknown_ones_pass() -> None:
    package = read_metadata(json.dumps(FULL).encode(), packaged=True)
    assert package.packaged_model_id == "elser_model_2"
    assert (package.size_bytes, package.sha256) == (438123914, "ab" * 32)
    assert package.tags == ("elastic",)
    assert package.vocabulary_file == "elser_model_2.vocab.json"
    assert (package.document_prefix, package.query_prefix) == ("passage: ", "query: ")
    assert package.tokenization == Tokenization(
        "mpnet", do_lower_case=True, max_sequence_length=128, truncate=False, span=64
    )
    assert package.results_field == "tokens"
    assert package.raw["something_new"] == [1, 2, 3]


def test_an_empty_file_means_elasticsearchs_defaults() -> None:
    package = read()
    assert package.tokenization == Tokenization(
        kind="bert", do_lower_case=False, max_sequence_length=512, truncate=True, with_special_tokens=True, span=-1
    )
    assert package.expansion(ExpansionConfig()) == ExpansionConfig(max_tokens=512)


def test_the_models_own_configuration_goes_before_the_packages() -> None:
    package = read_metadata(json.dumps(FULL).encode())
    own = ExpansionConfig(max_tokens=64, query_prefix="q: ", query_max_terms=8)
    assert package.expansion(own) == ExpansionConfig(
        max_tokens=64, truncate=False, document_prefix="passage: ", query_prefix="q: ", query_max_terms=8
    )


@pytest.mark.parametrize("key", ["packaged_model_id", "size", "sha256", "vocabulary_file"])
def test_a_packaged_model_says_what_is_needed_to_fetch_it(key: str) -> None:
    raw = json.dumps({name: value for name, value in FULL.items() if name != key}).encode()
    read_metadata(raw)
    with pytest.raises(FailedPreconditionError, match=f"{key} of its metadata is missing"):
        read_metadata(raw, packaged=True)


BAD = [
    ("size", {"size": -1}),
    ("size", {"size": "12"}),
    ("size", {"size": True}),
    ("sha256", {"sha256": "12"}),
    ("tags", {"tags": "a"}),
    ("tags", {"tags": [1]}),
    ("description", {"description": 5}),
    ("model_type", {"model_type": "tree_ensemble"}),
    ("vocabulary_file", {"vocabulary_file": "vocab.txt"}),
    ("vocabulary_file", {"vocabulary_file": "../vocab.json"}),
    ("vocabulary_file", {"vocabulary_file": "a\\vocab.json"}),
    ("prefix_strings", {"prefix_strings": "query: "}),
    ("prefix_strings.search", {"prefix_strings": {"search": 1}}),
    ("inference_config.text_embedding", {"inference_config": {"text_embedding": {}}}),
    ("inference_config", {"inference_config": []}),
    (
        "inference_config.text_expansion.expansion_type",
        {"inference_config": {"text_expansion": {"expansion_type": "dense"}}},
    ),
]
TOKENIZATION = [
    ("", {"bert": {}, "mpnet": {}}),
    (".deberta_v2", {"deberta_v2": {}}),
    (".bert", {"bert": 1}),
    (".bert.truncate", {"bert": {"truncate": "last"}}),
    (".bert.max_sequence_length", {"bert": {"max_sequence_length": 0}}),
    (".bert.do_lower_case", {"bert": {"do_lower_case": "yes"}}),
    (".bert.span", {"bert": {"span": -2}}),
]
BAD += [
    (
        f"inference_config.text_expansion.tokenization{key}",
        {"inference_config": {"text_expansion": {"tokenization": each}}},
    )
    for key, each in TOKENIZATION
]


@pytest.mark.parametrize(("key", "values"), BAD)
def test_a_bad_key_is_named(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(FailedPreconditionError, match=f"{key} of its metadata ") as raised:
        read(**values)
    assert [each.field for each in raised.value.violations] == [key]


# Half a letter, escaped or as it is: no answer that showed it could be sent.
HALVES = [b'{"description": "\\ud800"}', b'{"description": "\xed\xa0\x80"}', b'{"tags": [{"\\uDFFF": 1}]}']


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 1_000_001, *HALVES])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(FailedPreconditionError, match="metadata file"):
        read_metadata(raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FULL, "bert", "span"]), inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*FULL, "x"]), values))
def test_whatever_a_file_holds_it_is_read_or_refused_by_name(content: dict[str, Any]) -> None:
    with contextlib.suppress(FailedPreconditionError):
        assert read_metadata(json.dumps(content).encode()).expansion(ExpansionConfig()).max_tokens >= 3
