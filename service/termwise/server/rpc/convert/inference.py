"""Texts and their expansions from and to their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from termwise.server.errors import FieldViolation, TermwiseError, invalid_field
from termwise.server.inference.base import Side
from termwise.server.models.streams import StreamOptions, StreamTexts
from termwise.server.rpc.convert.values import duration, known
from termwise.server.rpc.status import to_status
from termwise.v1 import sparse_vector_pb2
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from termwise.server.inference.base import Expansion, Expansions, InferenceTimings
    from termwise.server.models.streams import StreamAnswer

_MAX_REQUEST_ID_BYTES: Final = 512

_SIDES: Final[Mapping[int, Side | None]] = {
    pb.InferRequest.INPUT_TYPE_UNSPECIFIED: None,
    pb.InferRequest.INPUT_TYPE_DOCUMENT: Side.DOCUMENT,
    pb.InferRequest.INPUT_TYPE_QUERY: Side.QUERY,
}


def side(request: pb.InferRequest | pb.StreamInferOptions) -> Side | None:
    """Read which side reads the texts; None: not said."""
    return known(_SIDES, request.input_type, "input_type")


def infer_response(expansions: Expansions, *, token_ids: bool) -> pb.InferResponse:
    """Write what became of texts; `token_ids` adds the vocabulary ids of the tokens."""
    return pb.InferResponse(
        results=[_text_expansion(expansion, token_ids=token_ids) for expansion in expansions.expansions],
        model_id=expansions.model_id,
        fingerprint=expansions.fingerprint,
        timings=_timings(expansions.timings),
    )


def _text_expansion(expansion: Expansion, *, token_ids: bool) -> pb.TextExpansion:
    return pb.TextExpansion(
        vector=sparse_vector_pb2.SparseVector(tokens=expansion.tokens, weights=expansion.weights.tolist()),
        token_ids=expansion.token_ids.tolist() if token_ids else (),
        token_count=expansion.token_count,
        truncated=expansion.truncated,
    )


def _timings(timings: InferenceTimings) -> pb.InferenceTimings:
    return pb.InferenceTimings(
        queue=duration(timings.queue), tokenize=duration(timings.tokenize), inference=duration(timings.inference)
    )


def stream_options(request: pb.StreamInferRequest) -> StreamOptions:
    """Read the first message of a stream.

    Raises:
        InvalidArgumentError: it has no options, or bad ones.

    """
    if not request.HasField("options"):
        raise invalid_field("options", "The first message of the stream must have them.")
    if not request.options.deployment_id:
        raise invalid_field("options.deployment_id", "It is empty; name the deployment.")
    return StreamOptions(request.options.deployment_id, known(_SIDES, request.options.input_type, "options.input_type"))


async def stream_texts(requests: AsyncIterator[pb.StreamInferRequest]) -> AsyncIterator[StreamTexts]:
    """Read the messages of a stream after the first.

    Raises:
        InvalidArgumentError: one of them has no texts, or a request id that is too long to give back.

    """
    async for request in requests:
        if request.HasField("options"):
            raise invalid_field("options", "Only the first message of the stream may have them; send texts.")
        if not request.HasField("texts"):
            raise invalid_field("texts.texts", "The message has none; send some.")
        request_id = request.texts.request_id
        if (size := len(request_id.encode())) > _MAX_REQUEST_ID_BYTES:
            raise invalid_field(
                "texts.request_id", f"{size:,} bytes are too long; give {_MAX_REQUEST_ID_BYTES} at most."
            )
        yield StreamTexts(request_id, list(request.texts.texts), request.ByteSize())


def stream_answer(answer: StreamAnswer, *, token_ids: bool) -> pb.StreamInferResponse:
    """Write what became of a message of texts; `token_ids` adds the vocabulary ids of the tokens."""
    if answer.error is not None or answer.expansions is None:
        error = answer.error if answer.error is not None else AssertionError("neither expansions nor an error")
        return pb.StreamInferResponse(request_id=answer.request_id, error=to_status(in_stream(error)))
    expansions = answer.expansions
    return pb.StreamInferResponse(
        request_id=answer.request_id,
        results=[_text_expansion(expansion, token_ids=token_ids) for expansion in expansions.expansions],
        model_id=expansions.model_id,
        fingerprint=expansions.fingerprint,
        timings=_timings(expansions.timings),
    )


_STREAM_FIELDS: Final[Mapping[str, str]] = {
    "deployment_id": "options.deployment_id",
    "input_type": "options.input_type",
    "texts": "texts.texts",
}


def in_stream(error: Exception) -> Exception:
    """Give an error of `expand` with its fields named as in the messages of a stream."""
    if not isinstance(error, TermwiseError) or not error.violations:
        return error
    violations = [
        FieldViolation(_STREAM_FIELDS.get(each.field, each.field), each.description) for each in error.violations
    ]
    first = violations[0]
    named = error.sentence != error.message
    return error.in_terms_of(f"{first.field}: {first.description}" if named else error.message, violations)
