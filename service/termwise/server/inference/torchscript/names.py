"""The names that the files of an ELSER-layout package have in a model's folder, whatever they were called before."""

from __future__ import annotations

from typing import Final

METADATA: Final = "package.metadata.json"
"""What the package says of itself; see `metadata.PackageMetadata`."""
ARCHIVE: Final = "package.pt"
"""The model, as TorchScript."""
VOCABULARY: Final = "package.vocab.json"
"""`{"vocabulary": […], "merges"?: […], "scores"?: […]}`."""
VOCABULARY_LIMIT_BYTES: Final = 20_000_000
"""Most bytes of a vocabulary file (Elasticsearch's limit too)."""
