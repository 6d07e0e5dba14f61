"""Lucene's FeatureField, as in Elasticsearch's and OpenSearch's sparse vectors, driven in this process through JPype.

Lucene's newest release and a Java runtime with its vector module come from one wheel of PyPI, `arcadedb-embedded`
(Apache-2.0; nothing of its database is used); Lucene is Apache-2.0. `TERMWISE_BENCH_LUCENE` may name other jars, such
as the one in `pyserini`, and `TERMWISE_BENCH_JAVA` another runtime.

To Lucene's advantage: one thread; a heap that never fills, parallel collector, the vector module on; queries built
beforehand (a linear FeatureQuery a token, in a BooleanQuery of SHOULD clauses); only `IndexSearcher.search` is timed,
and the making of its TopScoreDocCollector, which counts no further than 1, so that blocks are skipped, and serves one
search; results are read outside. The way through JPype is some microseconds of it.
`lucene` searches an index merged into one segment, `lucene segments` the segments that writing left. FeatureField
keeps 9 bits of a weight, so recall against exact scores is below 1.

Documents are written as text of `token|frequency` through Lucene's own DelimitedTermFrequencyTokenFilter: the postings
are those that FeatureField writes, with one call of Java a document instead of one a token. Seconds are those inside
Lucene; those of merging into one segment are not in them.
"""

from __future__ import annotations

import os
import shutil
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from peers.base import Answer, Built, Lane, PeerMissingError, Truth, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vectors import Collection, Query

_BATCH = 1_000
_WARM_UP_S = 2.0
"""Seconds that the just-in-time compiler gets for each new k, beside the rounds that every engine has untimed."""
_FIELD = "feature"


def start_java() -> Any:
    """Start the virtual machine, once a process; give JPype."""
    try:
        import jpype  # noqa: PLC0415 - optional

        if jpype.isJVMStarted():
            return jpype
        # Its files only: importing the package would start its own machine.
        root = Path(str(distribution("arcadedb-embedded").locate_file("arcadedb_embedded")))
    except (ImportError, PackageNotFoundError) as error:
        raise PeerMissingError(f"{error}; install requirements/bench.txt") from error
    jars = os.environ.get("TERMWISE_BENCH_LUCENE", "").split(":") if "TERMWISE_BENCH_LUCENE" in os.environ else []
    jars = jars or [str(jar) for jar in (root / "jars").glob("lucene-*.jar")]
    java = Path(os.environ.get("TERMWISE_BENCH_JAVA", root / "jre"))
    options = ["-Xms1g", "-Xmx6g", "-XX:+UseParallelGC", "-XX:ParallelGCThreads=1", "-XX:-UsePerfData", "-Xrs"]
    options += ["--enable-native-access=ALL-UNNAMED", "-Djava.util.logging.config.file=none"]
    if (java / "release").read_text().find("jdk.incubator.vector") >= 0:
        options.append("--add-modules=jdk.incubator.vector")
    jpype.startJVM(str(java / "lib" / "server" / "libjvm.so"), *options, classpath=jars, interrupt=False)
    return jpype


class Lucene:
    """FeatureField in one segment, and in those that writing left."""

    name = "lucene"

    def __init__(self) -> None:
        """Start the virtual machine."""
        self._java = start_java()

    def build(self, collection: Collection, folder: Path) -> Built:
        """Write all documents by one thread; then a copy merged into one segment."""
        java = self._java
        fresh = folder / "segments"
        writer = self._writer(java, fresh)
        kind = java.JClass("org.apache.lucene.document.FieldType")()
        kind.setIndexOptions(java.JClass("org.apache.lucene.index.IndexOptions").DOCS_AND_FREQS)
        kind.setTokenized(True)
        kind.setOmitNorms(True)
        kind.freeze()
        new = {
            name: java.JClass(f"org.apache.lucene.document.{name}")
            for name in ("Document", "Field", "NumericDocValuesField")
        }
        matrix = collection.documents
        seconds = 0.0
        for start in range(0, matrix.shape[0], _BATCH):
            texts = [java.JString(text) for text in feature_texts(matrix, start, start + _BATCH)]
            began = time.perf_counter()
            for number, text in enumerate(texts, start):
                document = new["Document"]()
                document.add(new["Field"](_FIELD, text, kind))
                document.add(new["NumericDocValuesField"]("number", number))
                writer.addDocument(document)
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        writer.close()
        seconds += time.perf_counter() - began
        shutil.copytree(fresh, folder / "merged")
        writer = self._writer(java, folder / "merged")
        writer.forceMerge(1)
        writer.close()
        return Built(seconds, size_of(folder / "merged"))

    def open(self, collection: Collection, folder: Path) -> None:
        """Open both indices, memory-mapped."""
        del collection
        java = self._java
        self._searchers = {}
        self._mapped = size_of(folder / "merged")
        for engine, name in (("lucene", "merged"), ("lucene segments", "segments")):
            reader = java.JClass("org.apache.lucene.index.DirectoryReader").open(self._directory(java, folder / name))
            searcher = java.JClass("org.apache.lucene.search.IndexSearcher")(reader)
            searcher.setQueryCache(None)
            self._searchers[engine] = (searcher, _numbers(reader), reader.leaves().size())
        self.version = str(java.JClass("org.apache.lucene.util.Version").LATEST)

    def lanes(self, queries: Sequence[Query], k: int, truth: Truth) -> list[Lane]:
        """Build the queries, and run some until the just-in-time compiler has settled."""
        del truth
        built = [self._query(query) for query in queries]
        lanes = []
        for engine, (searcher, numbers, segments) in self._searchers.items():
            manager = self._manager(k)
            lane = Lane(
                engine,
                built,
                lambda query, searcher=searcher, manager=manager: searcher.search(query, manager()),
                lambda top, numbers=numbers: _read(top, numbers),
                settings=f"Lucene {self.version}, segments: {segments}",
            )
            until = time.perf_counter() + _WARM_UP_S
            while time.perf_counter() < until:
                for query in built[:20]:
                    lane.search(query)
            lanes.append(lane)
            if self._searchers["lucene segments"][2] == 1:
                break  # both are the same
        return lanes

    def memory_bytes(self) -> int:
        """Give the mapped files' bytes; next to nothing else is held."""
        return self._mapped

    def close(self) -> None:
        """Close the readers; the virtual machine stays."""
        for searcher, _, _ in self._searchers.values():
            searcher.getIndexReader().close()

    def _writer(self, java: Any, folder: Path) -> Any:
        builder = java.JClass("org.apache.lucene.analysis.custom.CustomAnalyzer").builder()
        none = java.JArray(java.JString)(0)
        analyzer = builder.withTokenizer("whitespace", none).addTokenFilter("delimitedTermFrequency", none).build()
        config = java.JClass("org.apache.lucene.index.IndexWriterConfig")(analyzer)
        config.setRAMBufferSizeMB(64)
        config.setMergeScheduler(java.JClass("org.apache.lucene.index.SerialMergeScheduler")())
        return java.JClass("org.apache.lucene.index.IndexWriter")(self._directory(java, folder), config)

    def _directory(self, java: Any, folder: Path) -> Any:
        path = java.JClass("java.nio.file.Paths").get(str(folder), java.JArray(java.JString)(0))
        return java.JClass("org.apache.lucene.store.MMapDirectory")(path)

    def _manager(self, k: int) -> Any:
        try:
            made = self._java.JClass("org.apache.lucene.search.TopScoreDocCollectorManager")
            return lambda: made(k, 1)
        except TypeError:  # Lucene 9
            shared = self._java.JClass("org.apache.lucene.search.TopScoreDocCollector").createSharedManager
            return lambda: shared(k, None, 1)

    def _query(self, query: Query) -> Any:
        feature = self._java.JClass("org.apache.lucene.document.FeatureField")
        should = self._java.JClass("org.apache.lucene.search.BooleanClause").Occur.SHOULD
        builder = self._java.JClass("org.apache.lucene.search.BooleanQuery").Builder()
        for token, weight in zip(*query, strict=True):
            builder.add(feature.newLinearQuery(_FIELD, str(token), float(weight)), should)
        return builder.build()


def feature_texts(matrix: Any, start: int, end: int) -> list[str]:
    """Write rows as `token|frequency` text; FeatureField's frequency is the upper 17 bits of the float's 32."""
    texts = []
    for row in range(start, min(end, matrix.shape[0])):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        frequencies = matrix.data[part].astype(np.float32).view(np.int32) >> 15
        pairs = zip(matrix.indices[part].tolist(), frequencies.tolist(), strict=True)
        texts.append(" ".join([f"{token}|{frequency}" for token, frequency in pairs]))
    return texts


def _numbers(reader: Any) -> np.ndarray[Any, Any]:
    numbers = np.empty(reader.maxDoc(), np.int64)
    for leaf in reader.leaves():
        values = leaf.reader().getNumericDocValues("number")
        for document in range(leaf.docBase, leaf.docBase + leaf.reader().maxDoc()):
            values.nextDoc()
            numbers[document] = values.longValue()
    return numbers


def _read(top: Any, numbers: np.ndarray[Any, Any]) -> Answer:
    hits = [(hit.doc, hit.score) for hit in top.scoreDocs]
    return numbers[np.array([doc for doc, _ in hits], np.int64)], np.array([score for _, score in hits])
