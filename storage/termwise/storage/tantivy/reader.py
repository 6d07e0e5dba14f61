"""Reads an index at one moment: tantivy's searcher, and the exact path's tiles of the same commit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tantivy import Occur, Query

from termwise.storage.checks import check_condition, check_depth, field_of
from termwise.storage.tantivy.codec import decode_vectors
from termwise.storage.tantivy.conditions import Conditions
from termwise.storage.tantivy.layout import folder_size
from termwise.storage.tantivy.plan import best_dot, postings_budget, rank_sparse
from termwise.storage.types import (
    Condition,
    Everything,
    FieldKind,
    IndexStatistics,
    Leaf,
    Lexical,
    Ranking,
    Sparse,
    SparseFieldStatistics,
    SparseVector,
    StoredDocument,
    TokenStatistics,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tantivy import DocAddress, Document, Schema, Searcher

    from termwise.storage.tantivy.layout import Layout
    from termwise.storage.tantivy.tiles import Permitted, SparseTiles

_CACHE_BYTES: Final = 64 * 1024 * 1024
"""Most memory that one reader keeps matches in."""


class TantivyReader:
    """An index as of one commit. All callers of that moment share one, and so its cached matches."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        searcher: Searcher,
        schema: Schema,
        tiles: Mapping[str, SparseTiles] | None,
        last_seq_no: int,
        *,
        limited: bool = False,
    ) -> None:
        """Take a searcher and the tiles by sparse field; no tiles leave ranking to tantivy.

        `limited` bounds the postings that it reads for a sparse ranking, and so makes that inexact.
        """
        self._limited = limited
        self._folder = folder
        self._layout = layout
        self.searcher = searcher
        self.tiles = tiles
        self.last_seq_no = last_seq_no
        self._conditions = Conditions(layout, schema, searcher)
        self._cache = _Cache(_CACHE_BYTES)

    def get(self, ids: Sequence[str]) -> list[StoredDocument | None]:
        """See `IndexReader.get`."""
        addresses = [self._address("key", id_) for id_ in ids]
        return [None if address is None else self._stored(address) for address in addresses]

    def fetch(
        self, seq_nos: NDArray[np.int64], *, source: bool = True, sparse: Collection[str] | None = None
    ) -> list[StoredDocument]:
        """See `IndexReader.fetch`."""
        wanted = seq_nos.tolist()
        if not wanted:
            return []
        # One search for all: each would let go of the interpreter, and wait to have it back (a third of the time).
        hits, _ = self.hits(self._conditions.any_term("seq_no", wanted), len(wanted))
        addresses = [address for _, address in hits]
        places = dict(zip(self._seq_nos(addresses), addresses, strict=True))
        return [self._stored(places[seq_no], seq_no, source=source, sparse=sparse) for seq_no in wanted]

    def versions(self, ids: Sequence[str]) -> dict[str, int]:
        """Give the seq_nos of those documents that are there, by id."""
        if len(ids) > 1:
            hits, _ = self.hits(self._conditions.any_term("key", ids), len(ids))
            if len(hits) <= len(ids) // 3:  # reading a document takes twice as long as looking its id up
                addresses = [address for _, address in hits]
                found = [str(self.searcher.doc(address).get_first("key")) for address in addresses]
                return dict(zip(found, self._seq_nos(addresses), strict=True))
        placed = [(id_, self._address("key", id_)) for id_ in dict.fromkeys(ids)]
        there = [(id_, address) for id_, address in placed if address is not None]
        return dict(zip([id_ for id_, _ in there], self._seq_nos([address for _, address in there]), strict=True))

    def rank(self, leaf: Leaf, depth: int, where: Condition | None = None, *, count: int | None = None) -> Ranking:
        """See `IndexReader.rank`."""
        check_depth(depth, count)
        check_condition(self._layout.schema, leaf)
        if where is not None:
            check_condition(self._layout.schema, where)
        if isinstance(leaf, Lexical):
            return self._rank_lexical(leaf, depth, where)
        tiles = self._tiles(leaf.field)
        if tiles is None:
            budget = postings_budget(self.searcher.num_docs, len(leaf.vector)) if self._limited else None
            place = self._layout.places[leaf.field]
            return rank_sparse(self, self._conditions, place, leaf.vector, depth, where, budget=budget, count=count)
        permitted = None if where is None else self._permitted(leaf.field, tiles, where)
        seq_nos, scores, total, counted = tiles.rank(leaf.vector, depth, permitted, count=count)
        return Ranking(seq_nos, scores, total, counted=counted)

    def score(self, leaf: Leaf, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `IndexReader.score`."""
        check_condition(self._layout.schema, leaf)
        if isinstance(leaf, Lexical):
            return self._score_lexical(leaf, seq_nos)
        tiles = self._tiles(leaf.field)
        if tiles is not None:
            return tiles.score(leaf.vector, seq_nos)
        return self._score_sparse(leaf, seq_nos)

    def match(self, where: Condition) -> NDArray[np.int64]:
        """See `IndexReader.match`."""
        check_condition(self._layout.schema, where)
        matched: NDArray[np.int64] = self._cache.get(where, lambda: self._match(where))
        return matched

    def token_statistics(self, field: str, tokens: Sequence[str]) -> TokenStatistics:
        """See `IndexReader.token_statistics`."""
        field_of(self._layout.schema, field, {FieldKind.SPARSE_VECTOR})
        tiles = self._tiles(field)
        place = self._layout.places[field]
        if tiles is None:
            counts = [self._conditions.frequency(place, token) for token in tokens]
        else:
            known = tiles.frequencies
            numbers = (tiles.vocabulary.get(token, len(known)) for token in tokens)
            counts = [int(known[number]) if number < len(known) else 0 for number in numbers]
        whole = self._sparse_statistics(field)
        return TokenStatistics(
            whole.document_count, whole.token_count, whole.posting_count, np.array(counts, dtype=np.int64)
        )

    def statistics(self) -> IndexStatistics:
        """See `IndexReader.statistics`."""
        sparse = {place.name: self._sparse_statistics(place.name) for place in self._layout.sparse_places()}
        return IndexStatistics(self.searcher.num_docs, folder_size(self._folder), self.last_seq_no, sparse)

    # Beneath: what the tantivy plan for sparse vectors uses as well.

    def hits(self, query: Query, limit: int, *, count: bool = False) -> tuple[list[tuple[float, DocAddress]], int]:
        """Run a query; give the best hits and, where asked for, how many there are."""
        result: Any = self.searcher.search(query, limit=max(1, min(limit, self.searcher.num_docs)), count=count)
        return result.hits, result.count if count else 0

    def seq_nos(self, addresses: list[DocAddress]) -> NDArray[np.int64]:
        """Read the seq_nos of documents."""
        return np.array(self._seq_nos(addresses), dtype=np.int64)

    def vectors(self, address: DocAddress, number: int) -> list[SparseVector]:
        """Read a document's vectors of the field of that number."""
        data = self.searcher.doc(address).get_first("vec")
        return [vector for place, vector in decode_vectors(data or b"") if place == number]

    def with_condition(self, query: Query, where: Condition | None) -> Query:
        """Narrow a scoring query down to the documents that match `where`."""
        if where is None:
            return query
        return Query.boolean_query([(Occur.Must, query), (Occur.Must, self._silent(where))])

    def _silent(self, where: Condition) -> Query:
        return Query.const_score_query(self._conditions.query(where), 0.0)

    def _tiles(self, field: str) -> SparseTiles | None:
        return None if self.tiles is None else self.tiles[field]

    def _seq_nos(self, addresses: list[DocAddress]) -> list[int]:
        values: Any = self.searcher.fast_field_values("seq_no", addresses)
        return list(values)

    def _address(self, field: str, value: str | int) -> DocAddress | None:
        hits: Any = self.searcher.search(self._conditions.term(field, value), limit=1, count=False).hits
        return hits[0][1] if hits else None

    def _stored(
        self,
        address: DocAddress,
        seq_no: int | None = None,
        *,
        source: bool = True,
        sparse: Collection[str] | None = None,
    ) -> StoredDocument:
        document: Document = self.searcher.doc(address)
        vectors: dict[str, list[SparseVector]] = {}
        if sparse is None or sparse:
            names = {place.number: place.name for place in self._layout.sparse_places()}
            for number, vector in decode_vectors(document.get_first("vec") or b""):
                if sparse is None or names[number] in sparse:
                    vectors.setdefault(names[number], []).append(vector)
        return StoredDocument(
            str(document.get_first("key")),
            self._seq_nos([address])[0] if seq_no is None else seq_no,
            bytes(document.get_first("source") or b"") if source else b"",
            {name: held[0] for name, held in vectors.items() if len(held) == 1},
            {name: tuple(held) for name, held in vectors.items() if len(held) > 1},
        )

    def _match(self, where: Condition) -> NDArray[np.int64]:
        hits, _ = self.hits(self._silent(where), self.searcher.num_docs)
        matched = np.sort(self.seq_nos([address for _, address in hits]))
        matched.flags.writeable = False
        return matched

    def _permitted(self, field: str, tiles: SparseTiles, where: Condition) -> Permitted | None:
        if isinstance(where, Everything):
            return None
        permitted: Permitted = self._cache.get((field, where), lambda: tiles.permit(self.match(where)))
        return permitted

    def _rank_lexical(self, leaf: Lexical, depth: int, where: Condition | None) -> Ranking:
        """Let tantivy rank; where its list may end amid equal scores, take all of those, and sort them by seq_no."""
        query = self.with_condition(self._conditions.lexical(leaf), where)
        hits, total = self.hits(query, depth + 1, count=True)
        limit = depth + 1
        while len(hits) < total and hits[-1][0] == hits[depth - 1][0]:
            limit *= 4
            hits, _ = self.hits(query, limit)
        scores = np.array([score for score, _ in hits], dtype=np.float32)
        seq_nos = self.seq_nos([address for _, address in hits])
        order = np.lexsort((seq_nos, -scores))[:depth]
        return Ranking(seq_nos[order], scores[order], total)

    def _score_lexical(self, leaf: Lexical, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        result = np.full(len(seq_nos), np.nan, np.float32)
        if not len(seq_nos):
            return result
        among = self._conditions.any_term("seq_no", seq_nos.tolist())
        query = Query.boolean_query([(Occur.Must, self._conditions.lexical(leaf)), (Occur.Must, among)])
        hits, _ = self.hits(query, len(seq_nos))
        found = dict(zip(self._seq_nos([address for _, address in hits]), (score for score, _ in hits), strict=True))
        for place, seq_no in enumerate(seq_nos.tolist()):
            result[place] = found.get(seq_no, np.nan)
        return result

    def _score_sparse(self, leaf: Sparse, seq_nos: NDArray[np.int64]) -> NDArray[np.float32]:
        number = self._layout.places[leaf.field].number
        result = np.full(len(seq_nos), np.nan, np.float32)
        for place, seq_no in enumerate(seq_nos.tolist()):
            address = self._address("seq_no", seq_no)
            if address is not None:
                result[place] = best_dot(leaf.vector, self.vectors(address, number))
        return result

    def _sparse_statistics(self, field: str) -> SparseFieldStatistics:
        counts: SparseFieldStatistics = self._cache.get(("statistics", field), lambda: self._count_tokens(field))
        return counts

    def _count_tokens(self, field: str) -> SparseFieldStatistics:
        tiles = self._tiles(field)
        if tiles is not None:
            known = tiles.frequencies
            return SparseFieldStatistics(tiles.vector_count, int(np.count_nonzero(known)), int(known.sum()))
        place = self._layout.places[field]
        counts = list(self._conditions.all_tokens(place))
        holding = sum(times * self.hits(query, 1, count=True)[1] for query, times in self._conditions.holders(place))
        return SparseFieldStatistics(holding, len({token for token, _ in counts}), sum(count for _, count in counts))


class _Cache:
    """Keeps what was computed by key, up to a size in bytes; the least recently used goes first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, compute: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key][0]
        value = compute()
        size = _size(value)
        with self._lock:
            if key not in self._entries and size <= self._capacity:
                self._entries[key] = value, size
                self._size += size
                while self._size > self._capacity:
                    self._size -= self._entries.popitem(last=False)[1][1]
        return value


def _size(value: Any) -> int:
    return int(getattr(value, "nbytes", 64))
