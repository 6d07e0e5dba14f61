"""A slow model slows a stream down instead of failing it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from termwise.v1 import indices_pb2

if TYPE_CHECKING:
    from pathlib import Path

WORDS = "salmon planet file court bread clock music river market engine"
QUEUE_CAPACITY = 64


def load(launch: Any, data: Path, count: int) -> None:
    """Write `count` documents in one stream through a queue that holds far fewer."""
    server = launch(data)
    server.deploy("for_ingest", queue_capacity=QUEUE_CAPACITY)
    server.put_pipeline()
    server.create_index("docs", pipeline="expand")
    chance = random.Random(3)
    words = WORDS.split()
    documents = ((f"d{n}", {"text": " ".join(chance.choices(words, k=4))}) for n in range(count))
    acknowledged = [(one.operation_id, one.id, one.HasField("error")) for one in server.bulk("docs", documents)]
    assert acknowledged == [(f"d{n}", f"d{n}", False) for n in range(count)]
    stats = server.indices.GetIndexStats(indices_pb2.GetIndexStatsRequest(index="docs"), timeout=60).stats
    assert stats.document_count == count
    assert stats.sparse_fields["text_expansion"].document_count == count
    assert stats.sparse_fields["text_expansion"].fingerprint.startswith("sha256:")
    server.stop()


def test_two_thousand_documents_through_a_queue_of_64(launch: Any, fresh: Path) -> None:
    load(launch, fresh, 2_000)


@pytest.mark.slow
def test_twenty_thousand_documents_through_a_queue_of_64(launch: Any, fresh: Path) -> None:
    load(launch, fresh, 20_000)
