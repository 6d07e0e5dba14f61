"""A kill -9 at any moment loses no acknowledged write, and leaves nothing that was never sent."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from termwise.v1 import indices_pb2, search_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INDEX = "docs"
IDS = 1_500
"""So many ids in all: later rounds overwrite and delete what earlier ones wrote."""

State = str | None
"""A document's body, or None where there is none."""


@dataclass
class Load:
    """What was sent, operation by operation, and how much of it was acknowledged."""

    before: dict[str, State]
    sent: list[tuple[str, State]] = field(default_factory=list)
    acknowledged: int = 0

    def allowed(self) -> dict[str, list[State]]:
        """Give the states that each document may have: as of the last acknowledged operation, or of any sent later."""
        states: dict[str, list[State]] = {name: [state] for name, state in self.before.items()}
        for place, (name, state) in enumerate(self.sent):
            if place < self.acknowledged:
                states[name] = [state]
            else:
                states.setdefault(name, [None]).append(state)
        return states


def operations(load: Load, chance: random.Random, turn: int) -> Iterator[indices_pb2.BulkIndexRequest]:
    yield indices_pb2.BulkIndexRequest(defaults=indices_pb2.BulkIndexRequest.Defaults(index=INDEX))
    place = 0
    while True:
        name = f"d{chance.randrange(IDS)}"
        request = indices_pb2.BulkIndexRequest()
        request.operation.operation_id = str(place)
        known = load.sent[-1][1] if load.sent and load.sent[-1][0] == name else load.before.get(name)
        if known is not None and chance.random() < 0.2:
            request.operation.delete.id = name
            state = None
        else:
            words = " ".join(chance.choices(["red", "green", "blue", "salmon", "planet", "file"], k=8))
            vector = {f"t{chance.randrange(500)}": round(chance.uniform(0.1, 3), 3) for _ in range(20)}
            state = json.dumps({"text": words, "turn": turn, "place": place, "text_expansion": vector})
            request.operation.put.document.id = name
            request.operation.put.document.source_json = state
        load.sent.append((name, state))
        yield request
        place += 1


def stored(server: Any) -> dict[str, State]:
    """Read all documents by search, and check that every way to them agrees."""
    request = search_pb2.SearchRequest(indices=[INDEX], size=10_000, source_format="SOURCE_FORMAT_JSON")
    request.query.match_all.SetInParent()
    found = server.search.Search(request, timeout=60)
    assert found.total.value == len(found.hits) == len({hit.id for hit in found.hits})
    assert len({hit.version for hit in found.hits}) == len(found.hits)
    stats = server.indices.GetIndexStats(indices_pb2.GetIndexStatsRequest(index=INDEX), timeout=60).stats
    assert stats.document_count == len(found.hits)
    request.query.exists.field = "text_expansion"
    assert server.search.Search(request, timeout=60).total.value == len(found.hits)
    request.query.match.field, request.query.match.text = "text", "red green blue salmon planet file"
    assert server.search.Search(request, timeout=60).total.value == len(found.hits)
    return {hit.id: hit.source_json for hit in found.hits}


def kill_and_compare(launch: Any, data: Path, kills: int) -> None:
    chance = random.Random(7)
    server = launch(data)
    server.create_index(INDEX)
    load = Load({})
    for turn in range(kills):
        target = chance.randint(1, 1_500)
        stream = server.bulk_raw(operations(load, chance, turn))
        for acknowledgement in stream:
            missing = acknowledgement.error.code == grpc.StatusCode.NOT_FOUND.value[0]
            assert not acknowledgement.HasField("error") or missing, acknowledgement.error
            assert acknowledgement.operation_id == str(load.acknowledged)
            load.acknowledged += 1
            if load.acknowledged >= target:
                break
        server.kill()
        server = launch(data)
        now = stored(server)
        allowed = load.allowed()
        for name in allowed.keys() | now.keys():
            assert now.get(name) in allowed.get(name, []), (turn, name, load.acknowledged, len(load.sent))
        load = Load(dict(now))
    assert server.stop() == 0


def test_three_kills_lose_no_acknowledged_write(launch: Any, tmp_path: Path) -> None:
    kill_and_compare(launch, tmp_path / "data", 3)


@pytest.mark.slow
def test_twenty_kills_lose_no_acknowledged_write(launch: Any, tmp_path: Path) -> None:
    kill_and_compare(launch, tmp_path / "data", 20)
