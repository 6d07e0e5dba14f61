from __future__ import annotations

import math
import threading
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from termwise.client import (
    NO_RETRIES,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    RetryPolicy,
    TermwiseError,
    UnavailableError,
)
from termwise.client.retry import Attempts
from termwise.v1 import indices_pb2, search_pb2, trained_models_pb2

UNAVAILABLE = UnavailableError("gone")
FULL = ResourceExhaustedError("full", retry_delay=0.02)


def _unavailable(_: Any, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


def _full(_: Any, context: grpc.ServicerContext) -> None:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000)))
    status = status_pb2.Status(code=8, message="full", details=[packed])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


@given(
    attempt=st.integers(1, 30),
    jitter=st.floats(0, 1),
    remaining=st.floats(0, 1e6),
    asked=st.none() | st.floats(0, 1e3),
)
def test_a_delay_is_within_its_bounds_and_ends_before_the_deadline(
    attempt: int, jitter: float, remaining: float, asked: float | None
) -> None:
    policy = RetryPolicy(attempts=20, initial_delay=0.1, multiplier=2, max_delay=5)

    delay = policy.delay(UnavailableError("x", retry_delay=asked), attempt=attempt, remaining=remaining, jitter=jitter)

    if delay is None:
        longest = max(min(5, 0.1 * 2 ** (attempt - 1)), asked or 0)
        assert attempt >= 20 or longest >= remaining
    else:
        assert attempt < 20
        assert delay < remaining
        assert delay >= (asked or 0)
        assert min(5, 0.1 * 2 ** (attempt - 1)) / 2 <= delay <= max(5, asked or 0)


def test_delays_double_up_to_the_longest() -> None:
    policy = RetryPolicy(attempts=9, initial_delay=1, multiplier=2, max_delay=5)

    delays = [policy.delay(UNAVAILABLE, attempt=n, remaining=math.inf, jitter=1) for n in range(1, 10)]

    assert delays == [1, 2, 4, 5, 5, 5, 5, 5, None]


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (UNAVAILABLE, True),
        (FULL, True),
        (ResourceExhaustedError("too large"), False),
        (InternalError("bug"), False),
        (DeadlineExceededError("late"), False),
    ],
)
def test_only_what_may_pass_is_retried(error: TermwiseError, retried: bool) -> None:
    delay = RetryPolicy().delay(error, attempt=1, remaining=math.inf, jitter=0)

    assert (delay is not None) is retried


def test_attempts_share_one_deadline() -> None:
    now = [100.0]
    attempts = Attempts(
        RetryPolicy(initial_delay=1, multiplier=1), timeout=2.5, clock=lambda: now[0], jitter=lambda: 1.0
    )
    assert attempts.remaining() == 2.5

    now[0] += attempts.delay_or_raise(UNAVAILABLE, idempotent=True)
    assert attempts.remaining() == 1.5
    now[0] += attempts.delay_or_raise(UNAVAILABLE, idempotent=True)
    assert attempts.remaining() == 0.5

    with pytest.raises(UnavailableError):
        attempts.delay_or_raise(UNAVAILABLE, idempotent=True)
    now[0] += 10
    assert attempts.remaining() == 0


def test_progress_starts_the_count_again() -> None:
    attempts = Attempts(RetryPolicy(attempts=2, initial_delay=1), jitter=lambda: 1.0)

    for _ in range(5):
        assert attempts.delay_or_raise(UNAVAILABLE, idempotent=True) == 1
        attempts.progressed()
    assert attempts.remaining() is None


def test_reads_are_retried_until_they_work(server: Any, call: Any) -> None:
    server.script("Search/Search", _unavailable, _full, lambda *_: search_pb2.SearchResponse())

    assert call(lambda client: client.search("docs")).hits == ()
    assert len(server.calls["Search/Search"]) == 3


def test_tries_end(server: Any, call: Any) -> None:
    server.script("Indices/GetIndex", _unavailable)

    with pytest.raises(UnavailableError):
        call(lambda client: client.indices.get("docs"))
    assert len(server.calls["Indices/GetIndex"]) == 5


def test_retries_can_be_turned_off(server: Any, call: Any) -> None:
    server.script("Indices/GetIndex", _unavailable)

    with pytest.raises(UnavailableError):
        call(lambda client: client.indices.get("docs"), retry=NO_RETRIES)
    assert len(server.calls["Indices/GetIndex"]) == 1


@pytest.mark.parametrize(
    ("use", "method", "tries"),
    [
        (lambda c: c.indices.put_document("docs", {}, id="1"), "Indices/PutDocument", 5),
        (lambda c: c.indices.put_document("docs", {}), "Indices/PutDocument", 1),
        (lambda c: c.indices.put_document("docs", {}, id="1", create=True), "Indices/PutDocument", 1),
        (lambda c: c.indices.put_document("docs", {}, id="1", if_version=3), "Indices/PutDocument", 1),
        (lambda c: c.indices.delete_document("docs", "1"), "Indices/DeleteDocument", 1),
        (lambda c: c.indices.batch("docs", [{"id": "1"}, {"id": "2"}]), "Indices/BatchIndex", 5),
        (lambda c: c.indices.batch("docs", [{"id": "1"}, {"source": {}}]), "Indices/BatchIndex", 1),
        (lambda c: c.indices.create("docs"), "Indices/CreateIndex", 1),
        (lambda c: c.indices.delete("docs"), "Indices/DeleteIndex", 1),
        (lambda c: c.indices.list(), "Indices/ListIndices", 5),
        (lambda c: c.models.put("m"), "TrainedModels/PutTrainedModel", 1),
        (lambda c: c.models.delete("m"), "TrainedModels/DeleteTrainedModel", 1),
        (lambda c: c.models.download("m"), "TrainedModels/DownloadTrainedModel", 1),
        (lambda c: c.deployments.start("m"), "TrainedModels/StartDeployment", 1),
        (lambda c: c.deployments.stop("m"), "TrainedModels/StopDeployment", 1),
        (lambda c: c.infer("d", ["x"]), "TrainedModels/Infer", 5),
        (lambda c: c.expand("d", "x"), "TrainedModels/Infer", 5),
        (lambda c: c.pipelines.put("p", {}), "Pipeline/PutPipeline", 5),
        (lambda c: c.pipelines.delete("p"), "Pipeline/DeletePipeline", 1),
    ],
)
def test_only_calls_that_may_run_twice_are_retried(server: Any, call: Any, use: Any, method: str, tries: int) -> None:
    server.script(method, _unavailable)

    with pytest.raises(UnavailableError):
        call(use)
    assert len(server.calls[method]) == tries


def test_the_timeout_is_the_deadline_of_all_tries(server: Any, call: Any) -> None:
    seen = []

    def fails(request: Any, context: grpc.ServicerContext) -> None:
        seen.append(context.time_remaining())
        _unavailable(request, context)

    def answers(_: Any, context: grpc.ServicerContext) -> Any:
        seen.append(context.time_remaining())
        return search_pb2.SearchResponse()

    server.script("Search/Search", fails, answers)
    policy = RetryPolicy(initial_delay=0.4)

    call(lambda client: client.search("docs", timeout=4), retry=policy)
    first, second = seen
    assert first <= 4.1
    # gRPC sends deadlines rounded up, by 3 % at the most.
    assert 0 < second < first - 0.05, "the second try has what is left after a wait of at least 0.2 s"


def test_a_deadline_that_passes_ends_the_call(server: Any, call: Any) -> None:
    def hangs(_: Any, context: grpc.ServicerContext) -> Any:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait()
        return search_pb2.SearchResponse()

    server.script("Search/Search", hangs)

    with pytest.raises(DeadlineExceededError):
        call(lambda client: client.search("docs", timeout=0.1))


def test_lifecycle_calls_have_a_longer_deadline_than_others(server: Any, call: Any) -> None:
    seen = []

    def answer(_: Any, context: grpc.ServicerContext) -> Any:
        seen.append(context.time_remaining())
        return trained_models_pb2.StartDeploymentResponse()

    server.script("TrainedModels/StartDeployment", answer)
    server.script("Indices/GetIndex", lambda _, c: (seen.append(c.time_remaining()), indices_pb2.GetIndexResponse())[1])

    call(lambda client: client.deployments.start("m"))
    call(lambda client: client.indices.get("i"), timeout=7)

    assert 290 < seen[0] < 302, "gRPC rounds long deadlines up"
    assert 6 < seen[1] < 8
