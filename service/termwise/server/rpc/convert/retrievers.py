"""Retrievers from protobuf to values. Every refusal names the path of what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from termwise.server.errors import invalid_field
from termwise.server.rpc.convert.queries import QueryReader, finite, not_negative
from termwise.server.search import query as q
from termwise.v1 import search_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

_NORMALIZERS: Final = {
    search_pb2.LinearRetriever.NORMALIZER_MAX: q.Normalizer.MAX,
    search_pb2.LinearRetriever.NORMALIZER_MINMAX: q.Normalizer.MINMAX,
    search_pb2.LinearRetriever.NORMALIZER_L2: q.Normalizer.L2,
    search_pb2.LinearRetriever.NORMALIZER_NONE: q.Normalizer.NONE,
}


@dataclass(slots=True)
class RetrieverReader(QueryReader):
    """Reads the retrievers of one request as well. `needed` is its `offset` + `size`."""

    needed: int = 0

    def retriever(self, message: search_pb2.Retriever, path: str, depth: int) -> q.Retriever:
        """Read a retriever that stands at `path`, `depth` levels down."""
        kind = message.WhichOneof("kind")
        if kind is None:
            raise invalid_field(path, "It is empty; give one kind of retriever: standard, rrf or linear.")
        at = f"{path}.{kind}"
        self.count(at, depth)
        if kind == "standard":
            return self._standard(message.standard, at, depth)
        if kind == "rrf":
            return self._rrf(message.rrf, at, depth)
        return self._linear(message.linear, at, depth)

    def _standard(self, message: search_pb2.StandardRetriever, at: str, depth: int) -> q.Standard:
        query: q.Query = q.MatchAll(at=at)
        if message.HasField("query"):
            query = self.query(message.query, f"{at}.query", depth + 1)
        return q.Standard(
            query,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            min_score=finite(message, "min_score", f"{at}.min_score"),
            at=at,
        )

    def _rrf(self, message: search_pb2.RrfRetriever, at: str, depth: int) -> q.Rrf:
        short = self._short_form(message, at, depth)
        constant = message.rank_constant if message.HasField("rank_constant") else q.DEFAULT_RANK_CONSTANT
        if constant < 1:
            raise invalid_field(f"{at}.rank_constant", f"It is {constant}; give 1 or more.")
        return q.Rrf(
            parts=short
            or tuple(
                q.RankComponent(self._component(part, f"{at}.retrievers[{place}]", depth), _weight(part, at, place))
                for place, part in enumerate(message.retrievers)
            ),
            window=self._window(message, at, q.DEFAULT_RRF_WINDOW),
            rank_constant=constant,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            at=at,
        )

    def _linear(self, message: search_pb2.LinearRetriever, at: str, depth: int) -> q.Linear:
        short = self._short_form(message, at, depth)
        common = _normalizer(message.normalizer, f"{at}.normalizer", q.Normalizer.MAX)
        return q.Linear(
            parts=short
            or tuple(
                q.ScoreComponent(
                    self._component(part, f"{at}.retrievers[{place}]", depth),
                    _weight(part, at, place),
                    _normalizer(part.normalizer, f"{at}.retrievers[{place}].normalizer", common),
                )
                for place, part in enumerate(message.retrievers)
            ),
            window=self._window(message, at, q.DEFAULT_LINEAR_WINDOW),
            normalizer=common,
            filter=self.queries(message.filter, f"{at}.filter", depth + 1),
            at=at,
        )

    def _component(
        self, message: search_pb2.RrfRetriever.Component | search_pb2.LinearRetriever.Component, path: str, depth: int
    ) -> q.Retriever:
        if not message.HasField("retriever"):
            raise invalid_field(f"{path}.retriever", "It is absent; give a retriever.")
        return self.retriever(message.retriever, f"{path}.retriever", depth + 1)

    def _window(self, message: search_pb2.RrfRetriever | search_pb2.LinearRetriever, at: str, default: int) -> int:
        if not message.HasField("rank_window_size"):
            return max(default, self.needed)
        window = message.rank_window_size
        if not 1 <= window <= q.MAX_HITS:
            raise invalid_field(f"{at}.rank_window_size", f"It is {window:,}; give 1 to {q.MAX_HITS:,}.")
        if window < self.needed:
            raise invalid_field(
                f"{at}.rank_window_size",
                f"It is {window:,}, less than offset and size together; give {self.needed:,} or more.",
            )
        return window

    def _short_form(
        self, message: search_pb2.RrfRetriever | search_pb2.LinearRetriever, at: str, depth: int
    ) -> q.ShortForm | None:
        """Read `text` and `fields`; None where the request gives `retrievers`."""
        if message.retrievers:
            if message.text or message.fields:
                raise invalid_field(f"{at}.retrievers", "Give either retrievers, or text and fields, not both.")
            return None
        if not message.text.strip():
            if message.text or message.fields:
                raise invalid_field(f"{at}.text", "It is an empty query; give the text to search for.")
            raise invalid_field(at, "It has neither retrievers nor text; give one of the two.")
        for place in range(len(message.fields)):
            self.count(f"{at}.fields[{place}]", depth)
        return q.ShortForm(
            message.text,
            tuple(_weighted_field(spec, f"{at}.fields[{place}]") for place, spec in enumerate(message.fields)),
        )


def _weighted_field(spec: str, path: str) -> tuple[str, float]:
    """Cut "title^2" in two."""
    name, caret, number = spec.rpartition("^")
    if not caret:
        return spec, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise invalid_field(path, f"{_shown(number)} is no weight; after ^ give a number of 0 or more.")
    return name, weight


def _weight(message: Message, at: str, place: int) -> float:
    return not_negative(message, "weight", f"{at}.retrievers[{place}].weight", 1.0)


def _normalizer(value: int, path: str, default: q.Normalizer) -> q.Normalizer:
    if value == search_pb2.LinearRetriever.NORMALIZER_UNSPECIFIED:
        return default
    known = _NORMALIZERS.get(value)  # type: ignore[call-overload]
    if known is None:
        raise invalid_field(path, f"There is no normalizer {value}; take one of Normalizer.")
    return known  # type: ignore[no-any-return]


def _shown(text: str) -> str:
    """Cut a caller's text to what a message bears."""
    most = 40
    return repr(text if len(text) <= most else text[:most] + "…")
