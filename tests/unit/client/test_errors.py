from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from termwise.client import (
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    Resource,
    ResourceExhaustedError,
    TermwiseError,
    UnimplementedError,
)
from termwise.client.errors import error_from_status
from termwise.v1 import search_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Message) -> None:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def test_an_error_carries_everything_that_its_details_say(server: Any, call: Any) -> None:
    details = (
        error_details_pb2.ErrorInfo(reason="INDEX_NOT_FOUND", domain="termwise", metadata={"index": "docz"}),
        error_details_pb2.ResourceInfo(resource_type="index", resource_name="docz"),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="indices[0]", description="no such index")
            ]
        ),
    )
    server.script(
        "Search/Search", lambda _, context: _abort(context, grpc.StatusCode.NOT_FOUND, 'Index "docz"?', *details)
    )

    with pytest.raises(NotFoundError) as caught:
        call(lambda client: client.search("docz"))

    error = caught.value
    assert str(error) == error.message == 'Index "docz"?'
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "INDEX_NOT_FOUND"
    assert error.metadata == {"index": "docz"}
    assert error.resource == Resource("index", "docz")
    assert error.field_violations == (FieldViolation("indices[0]", "no such index"),)
    assert error.retry_delay is None


def test_retry_info_is_given_in_seconds(server: Any, call: Any) -> None:
    info = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=90, nanos=500_000_000))
    server.script(
        "TrainedModels/Infer", lambda _, context: _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info)
    )

    with pytest.raises(ResourceExhaustedError) as caught:
        call(lambda client: client.infer("d", ["x"]))

    assert caught.value.retry_delay == 90.5
    assert len(server.calls["TrainedModels/Infer"]) == 1, "waiting would outlast the deadline of 30 seconds"


def test_details_that_are_no_status_are_left_out(server: Any, call: Any) -> None:
    def broken(_: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")

    server.script("Search/Search", broken)

    with pytest.raises(InvalidArgumentError, match="bad") as caught:
        call(lambda client: client.search("docs"))

    assert caught.value.reason == ""


def test_a_failed_download_raises_in_the_middle_of_the_stream(server: Any, call: Any) -> None:
    def fails(_: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from ()
        _abort(context, grpc.StatusCode.UNIMPLEMENTED, "no")

    server.script("TrainedModels/DownloadTrainedModel", fails)

    with pytest.raises(UnimplementedError, match="no"):
        call(lambda client: client.models.download("m"))


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_code_becomes_an_error_that_keeps_it(code: grpc.StatusCode) -> None:
    error = error_from_status(status_pb2.Status(code=code.value[0], message="m"))

    assert isinstance(error, TermwiseError)
    assert error.code is code


def test_kinds_are_told_apart_by_class() -> None:
    codes = [kind.default_code for kind in TermwiseError.__subclasses__() if kind.__module__.endswith("client.errors")]

    assert len(codes) == len(set(codes)) == 14
    for kind in TermwiseError.__subclasses__():
        if kind.__module__.endswith("client.errors"):
            assert type(error_from_status(status_pb2.Status(code=kind.default_code.value[0]))) is kind


def test_a_code_that_grpc_does_not_know_is_unknown() -> None:
    assert error_from_status(status_pb2.Status(code=99, message="m")).code is grpc.StatusCode.UNKNOWN


def test_a_request_that_is_too_large_is_resource_exhausted_and_not_retried(server: Any, call: Any) -> None:
    server.script("Search/Search", lambda _, __: search_pb2.SearchResponse())

    with pytest.raises(ResourceExhaustedError):
        call(lambda client: client.search("docs", "x" * 5000), max_message_bytes=1000)

    assert server.calls["Search/Search"] == []
