"""Calls of the TrainedModels service that expand texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from termwise.client.calls import Unary
from termwise.client.messages import seconds, vector_from
from termwise.client.parsing import choose, invalid
from termwise.client.types import Expansion, Inference, InferenceTimings, SparseVector
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

InputType = Literal["query", "document"]
"""Which side of a model reads a text."""

INPUT_TYPES = {
    None: pb.InferRequest.INPUT_TYPE_UNSPECIFIED,
    "query": pb.InferRequest.INPUT_TYPE_QUERY,
    "document": pb.InferRequest.INPUT_TYPE_DOCUMENT,
}


def infer(
    deployment_id: str,
    texts: Iterable[str],
    *,
    input_type: InputType | None = None,
    include_token_ids: bool = False,
    timeout: float | None = None,
) -> Unary[Inference]:
    """Expand texts into sparse vectors, one a text, in order.

    Args:
        deployment_id: The deployment; or a model or an alias that one runs.
        texts: At least one, and at most what the deployment's queue holds.
        input_type: Which side of the model reads them; may be left out only where both sides are the same.
        include_token_ids: Give vocabulary ids too.
        timeout: Seconds; by default the client's.
    """
    if isinstance(texts, str):
        raise invalid("texts", "expected a list of strings, got one string; use expand() for one text")
    request = pb.InferRequest(
        deployment_id=deployment_id,
        texts=texts,
        input_type=choose(input_type, INPUT_TYPES, "input_type"),
        include_token_ids=include_token_ids,
    )
    return Unary("TrainedModels/Infer", request, read_inference, idempotent=True, timeout=timeout)


def expand(
    deployment_id: str, text: str, *, input_type: InputType | None = "query", timeout: float | None = None
) -> Unary[SparseVector]:
    """Expand one text, by default as a query, into weighted tokens, heaviest first."""
    call = infer(deployment_id, [text], input_type=input_type, timeout=timeout)
    return Unary(
        call.method,
        call.request,
        lambda answer: read_inference(answer).results[0].vector,
        idempotent=True,
        timeout=timeout,
    )


def read_inference(answer: pb.InferResponse) -> Inference:
    """Read the answer of Infer."""
    return Inference(
        results=tuple(read_expansion(each) for each in answer.results),
        model_id=answer.model_id,
        fingerprint=answer.fingerprint,
        timings=InferenceTimings(
            queue=seconds(answer.timings.queue),
            tokenize=seconds(answer.timings.tokenize),
            inference=seconds(answer.timings.inference),
        ),
    )


def read_expansion(answer: pb.TextExpansion) -> Expansion:
    """Read what became of one text."""
    return Expansion(vector_from(answer.vector), answer.token_count, answer.truncated, tuple(answer.token_ids))
