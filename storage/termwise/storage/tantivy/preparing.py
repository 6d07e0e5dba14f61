"""Brings a batch's documents into the forms that are written, before anything is locked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from termwise.storage.checks import check_document
from termwise.storage.errors import InvalidDocumentError
from termwise.storage.tantivy.batches import BrokenVectorError, Numbered, numbered, spelled_terms
from termwise.storage.tantivy.codec import EncodedVector, encode_vector, encode_vectors, sparse_terms
from termwise.storage.types import SMALLEST_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from termwise.storage.checks import Column
    from termwise.storage.tantivy.layout import Layout
    from termwise.storage.types import Document, SparseVector


@dataclass(frozen=True, slots=True, eq=False)
class FieldBatch:
    """The vectors of one sparse field: `operations` (int64, ascending, once a vector) says which brings each."""

    operations: NDArray[np.int64]
    vectors: Numbered


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a batch's documents come to. Keys are places in the batch."""

    columns: Mapping[int, Mapping[str, tuple[Column, ...]]]
    sparse: Mapping[int, tuple[list[str], bytes]]
    """Values of tantivy's fields `sparse` and `vec`."""
    fields: Mapping[str, FieldBatch]
    """By sparse field, empty ones too."""


def prepare(layout: Layout, documents: Sequence[tuple[int, Document]]) -> Prepared:
    """Check documents, each with its place in the batch, and bring them into the forms that are written.

    Raises:
        InvalidDocumentError: the first that does not fit the schema or a limit.

    """
    columns = {place: check_document(layout.schema, document, vectors=False) for place, document in documents}
    brought = {place: document.vectors() for place, document in documents if document.sparse or document.chunks}
    if not layout.keeps_chunks:
        _refuse_chunks(layout, documents)
    fields: dict[str, FieldBatch] = {}
    terms: dict[int, list[str]] = {place: [] for place in brought}
    encoded: dict[int, list[tuple[int, EncodedVector]]] = {place: [] for place in terms}
    try:
        for field in layout.sparse_places():
            name, number = field.name, field.number
            held = [(place, vector) for place, each in brought.items() for vector in each.get(name, ())]
            vectors = [_encoded(vector) for _, vector in held]
            batch = _checked(numbered(vectors))
            operations = np.array([place for place, _ in held], np.int64)
            holders, sizes = np.unique(operations, return_counts=True)
            if layout.joined_terms:
                texts = [[text] for text in spelled_terms(field.prefix, batch, sizes)]
            else:
                texts = [sparse_terms(field.prefix, vector) for _, vector in held]
            for place, text in zip(holders.tolist(), texts, strict=True):
                terms[place] += text
            for (place, _), vector in zip(held, vectors, strict=True):
                encoded[place].append((number, vector))
            fields[name] = FieldBatch(operations, batch)
    except (BrokenVectorError, UnicodeEncodeError) as error:
        for _, document in documents:
            check_document(layout.schema, document)  # says what is wrong
        raise InvalidDocumentError("A document has a sparse vector that cannot be read.") from error
    if layout.joined_terms:
        terms = {place: ["".join(texts)] for place, texts in terms.items()}
    return Prepared(columns, {place: (terms[place], encode_vectors(encoded[place])) for place in terms}, fields)


def _refuse_chunks(layout: Layout, documents: Sequence[tuple[int, Document]]) -> None:
    for _, document in documents:
        for name, held in document.chunks.items():
            if len(held) > 1:
                raise InvalidDocumentError(
                    f'Document "{document.id}": field "{name}" has several vectors, and an index of format version '
                    f"{layout.version} keeps one; make the index anew."
                )


def _encoded(vector: SparseVector) -> EncodedVector:
    if vector.weights.dtype != np.float32 or len(vector.weights) != len(vector.tokens):
        raise BrokenVectorError
    return encode_vector(vector)


def _checked(batch: Numbered) -> Numbered:
    weights = batch.weights
    if len(weights) and not (weights.min() >= SMALLEST_WEIGHT and weights.max() < np.inf):
        raise BrokenVectorError
    return batch
