from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from termwise.server.inference.base import Side
from termwise.server.inference.fake import FakeEncoder
from termwise.server.models.requests import DeploymentWait, ModelWait, NewDeployment, NewModel
from termwise.server.models.runner import DeploymentState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from termwise.server.metadata.store import MetadataStore

CONTEXT = RequestContext("test")


@pytest.fixture
async def ready(life: Any, source: Path) -> Any:
    """Give a life in which the model "mine" is READY."""
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    return life


def soon(seconds: float) -> RequestContext:
    return RequestContext("test", deadline=time.monotonic() + seconds)


async def listed(life: Any, deployment_id: str = "mine") -> None:
    """Wait until a start that runs beside has been admitted."""
    while all(  # noqa: ASYNC110 - a list tells nobody that it grew
        item.record.deployment_id != deployment_id for item in life.deployments.list()
    ):
        await asyncio.sleep(0)


class PanicError(BaseException):
    """Like what a panic of a library in Rust becomes: no Exception."""


def held_load(event: threading.Event) -> Callable[[], FakeEncoder]:
    def load() -> FakeEncoder:
        assert event.wait(30)
        return FakeEncoder()

    return load


async def test_start_expand_stop(ready: Any, store: MetadataStore) -> None:
    deployment = await ready.deployments.start(CONTEXT, NewDeployment("mine", "for_search", 2, 4, 10))
    assert deployment.state is DeploymentState.STARTED
    assert (deployment.allocation_count, deployment.precision, deployment.error) == (2, "float32", "")
    assert deployment.start_time >= deployment.record.create_time
    answer = await ready.deployments.expand(CONTEXT, "for_search", ["salmon farm", ""], Side.QUERY)
    assert sorted(answer.expansions[0].tokens) == ["farm", "salmon"]
    assert answer.expansions[1].tokens == ()
    assert (answer.model_id, answer.fingerprint) == ("mine", FakeEncoder().fingerprint(Side.QUERY))
    await ready.deployments.stop(CONTEXT, "for_search")
    assert store.list_deployments() == []
    with pytest.raises(NotFoundError):
        ready.deployments.get("for_search")
    with pytest.raises(NotFoundError):
        await ready.deployments.expand(CONTEXT, "for_search", ["x"], Side.QUERY)
    assert ready.health == [("for_search", False), ("for_search", True), ("for_search", False)]


async def test_the_deployment_id_defaults_to_the_models(ready: Any) -> None:
    deployment = await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    assert deployment.record.deployment_id == "mine"


async def test_ids_are_taken_once_and_not_from_other_models(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "one"))
    with pytest.raises(AlreadyExistsError):
        await ready.deployments.start(CONTEXT, NewDeployment("mine", "one"))
    await ready.catalog.put(CONTEXT, NewModel("other", "held://x"))
    for taken in ("other", ".splade_tiny"):
        with pytest.raises(InvalidArgumentError, match="another model") as caught:
            await ready.deployments.start(CONTEXT, NewDeployment("mine", taken))
        assert caught.value.violations[0].field == "deployment_id"
    with pytest.raises(AlreadyExistsError):
        await ready.catalog.put(CONTEXT, NewModel("one", "held://x"))
    with pytest.raises(NotFoundError, match='did you mean "mine"'):
        await ready.deployments.start(CONTEXT, NewDeployment("mines"))


async def test_racing_starts_have_one_winner(ready: Any) -> None:
    starts = (ready.deployments.start(CONTEXT, NewDeployment("mine", "one")) for _ in range(5))
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(isinstance(result, AlreadyExistsError) for result in results) == 4
    assert sum(not isinstance(result, BaseException) for result in results) == 1


async def test_a_start_waits_for_the_download(life: Any) -> None:
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    start = asyncio.create_task(life.deployments.start(CONTEXT, NewDeployment("mine")))
    await listed(life)
    assert await asyncio.to_thread(life.repository.half.wait, 30)
    assert not start.done()
    assert life.deployments.get("mine").state is DeploymentState.STARTING
    with pytest.raises(FailedPreconditionError, match="still starting"):
        await life.deployments.expand(CONTEXT, "mine", ["x"], None)
    life.repository.go.set()
    assert (await start).state is DeploymentState.STARTED


async def test_a_start_that_outlives_the_deadline_goes_on(life: Any) -> None:
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    with pytest.raises(DeadlineExceededError, match="still starting; follow it with GetDeployment"):
        await life.deployments.start(soon(0.05), NewDeployment("mine"))
    assert life.deployments.get("mine").state is DeploymentState.STARTING
    life.repository.go.set()
    await life.deployments.settled()
    assert life.deployments.get("mine").state is DeploymentState.STARTED


async def test_starting_is_answered_at_once(life: Any) -> None:
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    deployment = await life.deployments.start(CONTEXT, NewDeployment("mine"), DeploymentWait.STARTING)
    assert (deployment.state, deployment.allocation_count, deployment.precision) == (DeploymentState.STARTING, 0, "")


async def test_fully_allocated_has_every_worker(ready: Any) -> None:
    new = NewDeployment("mine", number_of_allocations=3)
    deployment = await ready.deployments.start(CONTEXT, new, DeploymentWait.FULLY_ALLOCATED)
    assert deployment.allocation_count == 3


async def test_a_failed_download_fails_the_deployment(life: Any) -> None:
    life.repository.failures.append(UnavailableError("No network."))
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    start = asyncio.create_task(life.deployments.start(CONTEXT, NewDeployment("mine")))
    await listed(life)
    life.repository.go.set()
    with pytest.raises(FailedPreconditionError, match=r"could not start: .*No network"):
        await start
    assert life.deployments.get("mine").state is DeploymentState.FAILED
    with pytest.raises(FailedPreconditionError, match=r"failed to download: No network. Call DownloadTrainedModel"):
        await life.deployments.start(CONTEXT, NewDeployment("mine", "again"))


async def test_a_download_that_is_tried_again_revives_what_had_failed_for_want_of_it(live: Any) -> None:
    life = live()
    life.repository.failures.append(UnavailableError("No network."))
    await life.catalog.put(CONTEXT, NewModel("mine", "held://x"))
    await life.deployments.start(CONTEXT, NewDeployment("mine", "one"), DeploymentWait.STARTING)
    life.repository.go.set()
    await life.deployments.settled()
    assert "No network" in life.deployments.get("one").error
    with pytest.raises(FailedPreconditionError, match="The deployment starts once the model is there"):
        await life.deployments.expand(CONTEXT, "one", ["x"], None)
    await life.end()

    life = live()
    await life.restore()
    await life.deployments.settled()
    assert life.deployments.get("one").state is DeploymentState.FAILED
    life.repository.go.set()
    async for _ in life.catalog.download(CONTEXT, "mine"):
        pass
    await life.deployments.settled()
    revived = life.deployments.get("one")
    assert (revived.state, revived.error) == (DeploymentState.STARTED, "")
    assert (await life.deployments.expand(CONTEXT, "one", ["x"], None)).model_id == "mine"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (FailedPreconditionError("Its vectors differ."), "Its vectors differ."),
        (PanicError("secret"), r"could not be loaded \(PanicError\)"),
        (RuntimeError("secret"), r"could not be loaded \(RuntimeError\)"),
        (MemoryError(), "not enough memory"),
    ],
)
async def test_a_failed_load_is_told_and_can_be_tried_again(ready: Any, failure: BaseException, message: str) -> None:
    def fail() -> FakeEncoder:
        raise failure

    ready.load = fail
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    assert "secret" not in caught.value.message
    failed = ready.deployments.get("mine")
    assert (failed.state, failed.allocation_count) == (DeploymentState.FAILED, 0)
    assert failed.error
    with pytest.raises(FailedPreconditionError, match=r"failed to start: .* Stop it, then start it again"):
        await ready.deployments.expand(CONTEXT, "mine", ["x"], None)
    await ready.deployments.stop(CONTEXT, "mine")
    ready.load = FakeEncoder
    assert (await ready.deployments.start(CONTEXT, NewDeployment("mine"))).state is DeploymentState.STARTED


async def test_texts_are_checked(ready: Any) -> None:
    ready.load = lambda: FakeEncoder(query_prefix="query: ")
    await ready.deployments.start(CONTEXT, NewDeployment("mine", queue_capacity=3))
    expand = ready.deployments.expand
    for texts, side, field in (
        ([], Side.QUERY, "texts"),
        (["x"] * 4, Side.QUERY, "texts"),
        (["x"], None, "input_type"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await expand(CONTEXT, "mine", texts, side)
        assert caught.value.violations[0].field == field
    assert len((await expand(CONTEXT, "mine", ["x"] * 10, Side.QUERY, wait=True)).expansions) == 10
    assert (await expand(CONTEXT, "mine", ["x"] * 3, Side.DOCUMENT)).fingerprint != (
        await expand(CONTEXT, "mine", ["x"], Side.QUERY)
    ).fingerprint


async def test_no_side_is_needed_where_both_are_alike(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    answer = await ready.deployments.expand(CONTEXT, "mine", ["salmon"], None)
    assert answer.expansions[0].tokens == ("salmon",)


async def test_stop_answers_what_was_admitted(ready: Any) -> None:
    go, entered = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(30)

    ready.load = lambda: FakeEncoder(delay=hold)
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    running = asyncio.create_task(ready.deployments.expand(CONTEXT, "mine", ["salmon"], None))
    assert await asyncio.to_thread(entered.wait, 30)
    waiting = asyncio.create_task(ready.deployments.expand(CONTEXT, "mine", ["farm"], None))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceededError, match="stops by itself"):
        await ready.deployments.stop(soon(0.05), "mine")
    assert ready.deployments.get("mine").state is DeploymentState.STOPPING
    with pytest.raises(FailedPreconditionError, match="is stopping"):
        await ready.deployments.expand(CONTEXT, "mine", ["x"], None)
    with pytest.raises(AlreadyExistsError):
        await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    again = asyncio.create_task(ready.deployments.stop(CONTEXT, "mine"))
    go.set()
    assert (await running).expansions[0].tokens == ("salmon",)
    assert (await waiting).expansions[0].tokens == ("farm",)
    await again
    assert ready.deployments.list() == []


async def test_stop_is_refused_while_something_uses_it(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    ready.users["mine"] = ['pipeline "expand"', 'index "docs"']
    with pytest.raises(FailedPreconditionError, match=r'is used by pipeline "expand", index "docs"; .* or set force'):
        await ready.deployments.stop(CONTEXT, "mine")
    assert ready.deployments.get("mine").state is DeploymentState.STARTED
    await ready.deployments.stop(CONTEXT, "mine", force=True)
    assert ready.deployments.list() == []


async def test_a_start_that_is_stopped_says_so(ready: Any) -> None:
    go = threading.Event()
    ready.load = held_load(go)
    start = asyncio.create_task(ready.deployments.start(CONTEXT, NewDeployment("mine")))
    await listed(ready)
    await ready.deployments.stop(CONTEXT, "mine")
    with pytest.raises(UnavailableError, match="was stopped meanwhile"):
        await start
    go.set()
    assert (await ready.deployments.start(CONTEXT, NewDeployment("mine"))).state is DeploymentState.STARTED


async def test_a_caller_that_leaves_does_not_stop_the_start(ready: Any) -> None:
    go = threading.Event()
    ready.load = held_load(go)
    start = asyncio.create_task(ready.deployments.start(CONTEXT, NewDeployment("mine")))
    await listed(ready)
    start.cancel()
    go.set()
    await ready.deployments.settled()
    assert ready.deployments.get("mine").state is DeploymentState.STARTED


async def test_deployments_of_one_model_share_an_encoder(ready: Any) -> None:
    for name in ("a", "b"):
        await ready.deployments.start(CONTEXT, NewDeployment("mine", name))
    assert len(ready.encoders) == 1
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "more_threads", threads_per_allocation=2))
    assert len(ready.encoders) == 2
    await ready.deployments.stop(CONTEXT, "a")
    assert (await ready.deployments.expand(CONTEXT, "b", ["salmon"], None)).expansions[0].tokens == ("salmon",)
    await ready.deployments.stop(CONTEXT, "b")
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "a"))
    assert len(ready.encoders) == 3


async def test_a_model_that_is_put_anew_gets_its_own_encoder(ready: Any, source: Path) -> None:
    go = threading.Event()
    entered = threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(30)

    ready.load = lambda: FakeEncoder(delay=hold)
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "old"))
    running = asyncio.create_task(ready.deployments.expand(CONTEXT, "old", ["salmon"], None))
    assert await asyncio.to_thread(entered.wait, 30)
    with pytest.raises(DeadlineExceededError):
        await ready.deployments.stop(soon(0.05), "old")
    await ready.catalog.delete("mine")
    await ready.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    ready.load = FakeEncoder
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "new"))
    assert len(ready.encoders) == 2
    go.set()
    await running


async def test_a_model_in_use_cannot_be_deleted(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine", "for_search"))
    with pytest.raises(FailedPreconditionError, match='used by deployment "for_search"; stop it first'):
        await ready.catalog.delete("mine")
    await ready.deployments.stop(CONTEXT, "for_search")
    await ready.catalog.delete("mine")


async def test_deployments_are_listed_by_id(ready: Any) -> None:
    for name in ("b", "a", "c"):
        await ready.deployments.start(CONTEXT, NewDeployment("mine", name), DeploymentWait.STARTING)
    assert [item.record.deployment_id for item in ready.deployments.list()] == ["a", "b", "c"]
    assert [item.record.deployment_id for item in ready.deployments.list("a", 1)] == ["b"]


async def test_the_next_start_brings_everything_back(
    live: Callable[..., Any], source: Path, store: MetadataStore
) -> None:
    first = live()
    await first.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    for name, precision in (("a", "float32"), ("b", "")):
        new = NewDeployment("mine", name, queue_capacity=9, precision=precision, cache_size_bytes=5_000)
        await first.deployments.start(CONTEXT, new)
    await first.end()
    assert [record.deployment_id for record in store.list_deployments()] == ["a", "b"]
    second = live()
    await second.restore()
    assert {item.record.deployment_id for item in second.deployments.list()} == {"a", "b"}
    await second.deployments.settled()
    for item in second.deployments.list():
        assert (item.state, item.record.queue_capacity) == (DeploymentState.STARTED, 9)
        assert item.record.cache_size_bytes == 5_000
    assert sorted(second.precisions) == ["auto", "float32"]
    assert (await second.deployments.expand(CONTEXT, "b", ["salmon"], None)).expansions[0].tokens == ("salmon",)


async def test_the_servers_precision_and_the_same_asked_for_share_an_encoder(
    live: Callable[..., Any], source: Path
) -> None:
    life = live(precision="bfloat16")
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    for name, precision in (("a", ""), ("b", "bfloat16"), ("c", "float32")):
        await life.deployments.start(CONTEXT, NewDeployment("mine", name, precision=precision))
    assert life.precisions == ["bfloat16", "float32"]


@pytest.mark.parametrize(
    ("asked", "message", "fields"),
    [
        ("", "The server's setting precision: This processor does not; use AUTO.", []),
        ("int8", "precision: This processor does not; use AUTO.", ["precision"]),
    ],
)
async def test_a_precision_that_cannot_be_had_names_who_asked_for_it(
    live: Callable[..., Any], source: Path, asked: str, message: str, fields: list[str]
) -> None:
    sentence = "This processor does not; use AUTO."

    def refuse() -> FakeEncoder:
        raise FailedPreconditionError(
            f"precision: {sentence}", reason="NO", violations=[FieldViolation("precision", sentence)]
        )

    life = live(refuse, precision="int8")
    await life.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    with pytest.raises(FailedPreconditionError) as caught:
        await life.deployments.start(CONTEXT, NewDeployment("mine", precision=asked))
    assert caught.value.message == f'Deployment "mine" could not start: {message}'
    assert caught.value.metadata["cause"] == "NO"
    assert [each.field for each in caught.value.violations] == fields


async def test_a_start_before_the_restore_is_begun_once(ready: Any) -> None:
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    await ready.deployments.restore()
    await ready.deployments.settled()
    assert ready.health == [("mine", False), ("mine", True)]


async def test_a_deployment_whose_model_is_gone_comes_back_failed(
    live: Callable[..., Any], source: Path, models: Path
) -> None:
    first = live()
    await first.catalog.put(CONTEXT, NewModel("mine", f"file://{source}"), ModelWait.READY)
    await first.deployments.start(CONTEXT, NewDeployment("mine"))
    await first.end()
    (models / "mine" / "model.safetensors").unlink()
    second = live()
    await second.restore()
    await second.deployments.settled()
    back = second.deployments.get("mine")
    assert back.state is DeploymentState.FAILED
    assert "gone from the data folder" in back.error


async def test_closing_answers_what_was_admitted_and_refuses_new_starts(ready: Any) -> None:
    go, entered = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(30)

    ready.load = lambda: FakeEncoder(delay=hold)
    await ready.deployments.start(CONTEXT, NewDeployment("mine"))
    running = asyncio.create_task(ready.deployments.expand(CONTEXT, "mine", ["salmon"], None))
    assert await asyncio.to_thread(entered.wait, 30)
    closing = asyncio.create_task(ready.deployments.close())
    while ready.deployments.get("mine").state is DeploymentState.STARTED:  # noqa: ASYNC110 - a state tells nobody
        await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await ready.deployments.start(CONTEXT, NewDeployment("mine", "late"))
    go.set()
    await closing
    assert (await running).expansions[0].tokens == ("salmon",)
