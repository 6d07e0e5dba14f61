"""The metadata file of a package in ELSER's layout. Nothing here needs torch.

The keys are those that Elasticsearch's `ModelPackageConfig` and its `inference_config` name; whatever else a file holds
passes unread.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import FailedPreconditionError, FieldViolation
from termwise.server.inference.files import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.inference.base import ExpansionConfig

TOKENIZATIONS: Final = ("bert", "mpnet", "roberta", "xlm_roberta")
"""The tokenizers that a package may name."""

_LIMIT_BYTES: Final = 1_000_000
# The proto's rule for max_tokens: room for one token between the special ones.
_SHORTEST: Final = 3
_LONGEST: Final = 1 << 20
# What Elasticsearch does with the end of a long text; for one text alone, these three are the same.
_CUTS: Final = ("first", "second", "balanced")
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How the package's texts become tokens; the defaults are Elasticsearch's.

    `kind` is one of `TOKENIZATIONS`. `truncate` False refuses long texts. `span` is read and plays no part: windows
    over a long text are what chunking at ingestion makes.
    """

    kind: str = "bert"
    do_lower_case: bool = False
    max_sequence_length: int = 512
    truncate: bool = True
    with_special_tokens: bool = True
    add_prefix_space: bool = False
    span: int = -1


@dataclass(frozen=True, slots=True)
class PackageMetadata:
    """What a package says of itself. Strings are "" where it does not say.

    `size_bytes` and `sha256` (hex, in small letters) are those of the archive; `size_bytes` is 0 where it does not say.
    `expansion_type` is "splade" for a model whose answer is logits, a row a token. `raw` is the whole file.
    """

    packaged_model_id: str = ""
    description: str = ""
    minimum_version: str = ""
    size_bytes: int = 0
    sha256: str = ""
    model_type: str = ""
    tags: tuple[str, ...] = ()
    vocabulary_file: str = ""
    platform_architecture: str = ""
    document_prefix: str = ""
    query_prefix: str = ""
    results_field: str = "predicted_value"
    expansion_type: str = ""
    tokenization: Tokenization = field(default_factory=Tokenization)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict)

    def check_platform(self) -> None:
        """Refuse a package that was made for another platform, such as an int8 archive for "linux-x86_64".

        Raises:
            FailedPreconditionError: this machine's is another; both are named.

        """
        here = f"{platform.system().lower()}-{platform.machine().lower()}"
        if self.platform_architecture not in {"", here}:
            raise FailedPreconditionError(
                f"The package is made for {self.platform_architecture} and this server runs on {here}; use the "
                "package for any platform.",
                reason="PLATFORM_UNSUPPORTED",
                metadata={"package": self.platform_architecture, "server": here},
            )

    def expansion(self, config: ExpansionConfig) -> ExpansionConfig:
        """Give the configuration of a model: what `config` leaves open, the package says."""
        return replace(
            config,
            max_tokens=config.max_tokens or self.tokenization.max_sequence_length,
            truncate=config.truncate and self.tokenization.truncate,
            document_prefix=config.document_prefix or self.document_prefix,
            query_prefix=config.query_prefix or self.query_prefix,
        )


def read_metadata(raw: bytes, *, packaged: bool = False) -> PackageMetadata:
    """Read a metadata file.

    `packaged` asks for what a package must say that is found by its id alone: `packaged_model_id`, `size`, `sha256` and
    `vocabulary_file`.

    Raises:
        FailedPreconditionError: a key that is read holds what it cannot hold, or is missing; the message names it.

    """
    values = _parse(raw)
    if packaged:
        for key in ("packaged_model_id", "size", "sha256", "vocabulary_file"):
            if values.get(key) is None:
                raise _bad(key, "is missing")
    sha256 = _string(values, "sha256")
    if sha256 and not _HEX.fullmatch(sha256):
        raise _bad("sha256", "is not 64 hexadecimal digits")
    model_type = _string(values, "model_type")
    if model_type not in {"", "pytorch"}:
        raise _bad("model_type", f'is "{model_type}"; the one supported is "pytorch"')
    prefixes = _object(values, "prefix_strings")
    task = _task(_object(values, "inference_config"))
    return PackageMetadata(
        packaged_model_id=_string(values, "packaged_model_id"),
        description=_string(values, "description"),
        minimum_version=_string(values, "minimum_version"),
        size_bytes=_integer(values, "size", 1, 1 << 62) or 0,
        sha256=sha256.lower(),
        model_type=model_type,
        tags=_strings(values, "tags"),
        vocabulary_file=_vocabulary_file(values),
        platform_architecture=_string(values, "platform_architecture"),
        document_prefix=_string(prefixes, "ingest", "prefix_strings."),
        query_prefix=_string(prefixes, "search", "prefix_strings."),
        results_field=_string(task, "results_field", _TASK) or "predicted_value",
        expansion_type=_expansion_type(task),
        tokenization=_tokenization(_object(task, "tokenization", _TASK)),
        metadata=_object(values, "metadata"),
        raw=values,
    )


_TASK: Final = "inference_config.text_expansion."


def _parse(raw: bytes) -> dict[str, Any]:
    if len(raw) > _LIMIT_BYTES:
        raise _unusable(f"has {len(raw)} bytes, over the {_LIMIT_BYTES} that one may have")
    try:
        values = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise _unusable("is not readable JSON") from error
    if not isinstance(values, dict):
        raise _unusable("does not hold a JSON object")
    return values


def _task(config: Mapping[str, Any]) -> Mapping[str, Any]:
    others = [name for name, value in config.items() if isinstance(value, dict) and name != "text_expansion"]
    if others and "text_expansion" not in config:
        raise _bad(f"inference_config.{others[0]}", "is not supported; the one supported is text_expansion")
    return _object(config, "text_expansion", "inference_config.")


def _expansion_type(task: Mapping[str, Any]) -> str:
    kind = _string(task, "expansion_type", _TASK).lower()
    if kind not in {"", "elser", "splade"}:
        raise _bad(f"{_TASK}expansion_type", f'is "{kind}"; use elser or splade')
    return kind


def _tokenization(holder: Mapping[str, Any]) -> Tokenization:
    path = f"{_TASK}tokenization."
    if not holder:
        return Tokenization()
    kind, *others = holder
    if others:
        raise _bad(path[:-1], f"names several tokenizers ({', '.join(holder)})")
    if kind not in TOKENIZATIONS:
        raise _bad(path + kind, f"is not supported; use one of {', '.join(TOKENIZATIONS)}")
    settings = _object(holder, kind, path)
    path = f"{path}{kind}."
    cut = (_string(settings, "truncate", path) or "first").lower()
    if cut not in {*_CUTS, "none"}:
        raise _bad(f"{path}truncate", f'is "{cut}"; use first or none')
    default = Tokenization()
    return Tokenization(
        kind=kind,
        do_lower_case=_boolean(settings, "do_lower_case", path, default=default.do_lower_case),
        max_sequence_length=_integer(settings, "max_sequence_length", _SHORTEST, _LONGEST, path)
        or default.max_sequence_length,
        truncate=cut != "none",
        with_special_tokens=_boolean(settings, "with_special_tokens", path, default=default.with_special_tokens),
        add_prefix_space=_boolean(settings, "add_prefix_space", path, default=default.add_prefix_space),
        span=_span(settings, path),
    )


def _span(settings: Mapping[str, Any], path: str) -> int:
    span = _integer(settings, "span", -1, _LONGEST, path)
    return -1 if span is None else span


def _vocabulary_file(values: Mapping[str, Any]) -> str:
    name = _string(values, "vocabulary_file")
    if name and (not name.endswith(".json") or "/" in name or "\\" in name or not name.isprintable()):
        raise _bad("vocabulary_file", f'is "{name[:80]}"; it must be the name of a .json file, without a folder')
    return name


def _string(values: Mapping[str, Any], key: str, path: str = "") -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(path + key, "is not a string")
    return value


def _strings(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or any(not isinstance(each, str) for each in value):
        raise _bad(key, "is not a list of strings")
    return tuple(value)


def _object(values: Mapping[str, Any], key: str, path: str = "") -> Mapping[str, Any]:
    value = values.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(path + key, "is not an object")
    return value


def _boolean(values: Mapping[str, Any], key: str, path: str, *, default: bool) -> bool:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _bad(path + key, "is not true or false")
    return value


def _integer(values: Mapping[str, Any], key: str, least: int, most: int, path: str = "") -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _bad(path + key, f"is not a whole number from {least} to {most}")
    return value


def _bad(key: str, problem: str) -> FailedPreconditionError:
    sentence = f"{problem}."
    return FailedPreconditionError(
        f"The package cannot be used: {key} of its metadata {sentence}",
        reason="PACKAGE_UNUSABLE",
        metadata={"key": key},
        violations=[FieldViolation(key, f"{key} {sentence}")],
    )


def _unusable(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"The package's metadata file {problem}.", reason="PACKAGE_UNUSABLE")
