from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from termwise.server.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from termwise.server.indices.documents import InputDocument
from termwise.server.inference.base import Expansions, Side
from termwise.server.inference.fake import FakeExpander, word_weight
from termwise.server.ingest.draft import StepStatus
from termwise.server.ingest.processors import (
    Action,
    FailProcessor,
    InferenceProcessor,
    IngestPipeline,
    InputOutput,
    LowercaseProcessor,
    Processor,
    RemoveProcessor,
    RenameProcessor,
    SetProcessor,
)
from termwise.storage.types import sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from termwise.server.context import RequestContext
    from termwise.server.ingest.draft import Draft

MESSAGE = "{{_ingest.on_failure_processor_type}}/{{_ingest.on_failure_processor_tag}}: {{_ingest.on_failure_message}}"


def words(*names: str) -> dict[str, float]:
    return {name: word_weight(name) for name in names}


def weights(draft: Draft, field: str) -> dict[str, float]:
    vector = draft.sparse[field]
    return dict(zip(vector.tokens, vector.weights.tolist(), strict=True))


async def run(stack: Any, pipeline: IngestPipeline, *bodies: dict[str, Any], verbose: bool = False) -> list[Draft]:
    documents = [InputDocument(str(place), json.dumps(body).encode()) for place, body in enumerate(bodies)]
    return list(await stack.pipelines.simulate(stack.context, pipeline, documents, verbose=verbose))


async def run_one(stack: Any, action: Action, body: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Give the body afterwards, and the message of the failure."""
    (draft,) = await run(stack, IngestPipeline((Processor(action),)), body)
    return json.loads(draft.source()), draft.failure.error.message if draft.failure else None


@pytest.mark.parametrize(
    ("action", "body", "expected"),
    [
        (SetProcessor("a", 1), {}, {"a": 1}),
        (SetProcessor("a.b", "{{c}}!"), {"c": 5}, {"c": 5, "a": {"b": "5!"}}),
        (SetProcessor("a", None), {"a": 1}, {"a": None}),
        (SetProcessor("a", 2, override=False), {"a": 1}, {"a": 1}),
        (SetProcessor("a", 2, override=False), {"a": None}, {"a": 2}),
        (SetProcessor("a", "{{absent}}", ignore_empty_value=True), {"b": 1}, {"b": 1}),
        (SetProcessor("a", None, ignore_empty_value=True), {"b": 1}, {"b": 1}),
        (SetProcessor("a", copy_from="b"), {"b": {"c": [1]}}, {"b": {"c": [1]}, "a": {"c": [1]}}),
        (SetProcessor("a", copy_from="b", ignore_empty_value=True), {}, {}),
        (SetProcessor("a.b", copy_from="a"), {"a": {"c": 1}}, {"a": {"c": 1, "b": {"c": 1}}}),
        (RemoveProcessor(("a", "b.c")), {"a": 1, "b": {"c": None, "d": 2}}, {"b": {"d": 2}}),
        (RemoveProcessor(("a", "x"), ignore_missing=True), {"a": 1}, {}),
        (RenameProcessor("a", "b.c"), {"a": 1}, {"b": {"c": 1}}),
        (RenameProcessor("a", "a.b"), {"a": {"x": 1}}, {"a": {"b": {"x": 1}}}),
        (RenameProcessor("a.b", "a"), {"a": {"b": 1}}, None),
        (RenameProcessor("a.b", "a", override=True), {"a": {"b": 1}}, {"a": 1}),
        (RenameProcessor("a", "b", ignore_missing=True), {"c": 1}, {"c": 1}),
        (RenameProcessor("a", "b", override=True), {"a": 1, "b": 2}, {"b": 1}),
        (RenameProcessor("a", "b"), {"a": 1, "b": 2}, None),
        (RenameProcessor("a", "b"), {}, None),
        (RenameProcessor("a.b", "c.d"), {"a.b": 1, "a": 2, "c": 3}, None),
        (LowercaseProcessor("a"), {"a": "ÄB"}, {"a": "äb"}),
        (LowercaseProcessor("a", "b"), {"a": ["A", "B"]}, {"a": ["A", "B"], "b": ["a", "b"]}),
        (LowercaseProcessor("a", ignore_missing=True), {"a": None}, {"a": None}),
        (LowercaseProcessor("a"), {}, None),
        (LowercaseProcessor("a"), {"a": ["A", 1]}, None),
        (LowercaseProcessor("a"), {"a": 1}, None),
        (SetProcessor("a.b", 1), {"a": "x"}, None),
        (SetProcessor("a", copy_from="b"), {}, None),
        (RemoveProcessor(("a", "x")), {"a": 1}, None),
        (FailProcessor("no"), {"a": 1}, None),
    ],
)
async def test_processors_change_bodies(
    stack: Any, action: Action, body: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    """None: it fails, and the body is as before."""
    after, failure = await run_one(stack, action, body)
    assert after == (body if expected is None else expected)
    assert (failure is not None) == (expected is None)


async def test_an_unchanged_body_keeps_its_text(stack: Any) -> None:
    source = b'{ "n" : 1.50, "n2":1e2 }'
    (draft,) = await stack.pipelines.simulate(
        stack.context, IngestPipeline((Processor(SetProcessor("n", 1, override=False)),)), [InputDocument("", source)]
    )
    assert draft.source() == source


async def test_vectors_are_fields_too(stack: Any) -> None:
    vector = sparse_vector(["a"], [1])
    document = InputDocument("1", b'{"v": "in the way"}', {"x": vector})
    for actions, expected in (
        ([RenameProcessor("x", "y")], {"y": vector}),
        ([RenameProcessor("x", "v", override=True)], {"v": vector}),
        ([SetProcessor("y", copy_from="x")], {"x": vector, "y": vector}),
        ([SetProcessor("x", "body now")], {}),
        ([RemoveProcessor(("x", "v"))], {}),
    ):
        pipeline = IngestPipeline(tuple(map(Processor, actions)))
        (draft,) = await stack.pipelines.simulate(stack.context, pipeline, [document])
        assert draft.failure is None
        assert draft.sparse == expected
        assert ("v" in draft.body) == ("v" not in expected and not isinstance(actions[0], RemoveProcessor))
    (draft,) = await stack.pipelines.simulate(
        stack.context, IngestPipeline((Processor(SetProcessor("s", "{{x}}")),)), [document]
    )
    assert draft.body["s"] == '{"a":1.0}'


async def test_depth_and_size_stay_bounded(stack: Any) -> None:
    deepen = Processor(SetProcessor("a.a", copy_from="a"))
    (deep,) = await run(stack, IngestPipeline((deepen,) * 100), {"a": {"x": 1}})
    assert deep.failure is not None
    assert "30 levels" in deep.failure.error.message
    double = Processor(SetProcessor("a", "{{a}}{{a}}"))
    (long,) = await run(stack, IngestPipeline((double,) * 100), {"a": "x"})
    assert long.failure is not None
    copy = (Processor(SetProcessor("b", copy_from="a")), Processor(SetProcessor("a", ["{{b}}", "{{b}}"])))
    (wide,) = await run(stack, IngestPipeline(copy * 100), {"a": "x" * 1000})
    assert wide.failure is not None


EXPAND = InferenceProcessor("for_ingest", (InputOutput("text", "expansion"),))


async def test_texts_of_all_documents_go_to_the_model_together(stack: Any, expander: FakeExpander) -> None:
    two = InferenceProcessor("for_ingest", (InputOutput("text", "expansion"), InputOutput("title", "other")))
    drafts = await run(
        stack,
        IngestPipeline((Processor(two),)),
        {"text": "one two", "title": "three"},
        {"text": "", "title": "  "},
        {"text": ["one", "two one", "", None], "title": []},
        {"text": "one two", "title": "four"},
    )
    assert expander.calls == [("for_ingest", ["one two", "three", "one", "two one", "four"], Side.DOCUMENT)]
    assert [weights(draft, "expansion") for draft in drafts] == [
        words("one", "two"),
        {},
        words("one", "two"),
        words("one", "two"),
    ]
    assert [weights(draft, "other") for draft in drafts] == [words("three"), {}, {}, words("four")]
    fingerprint = expander.encoders["for_ingest"].fingerprint(Side.DOCUMENT)
    assert drafts[0].inferred["expansion"].fingerprint == fingerprint
    assert drafts[0].inferred["expansion"].model_id == "fake"
    assert drafts[1].inferred == {}
    assert drafts[0].text == drafts[0].source()


async def test_documents_without_texts_do_not_reach_the_model(stack: Any, expander: FakeExpander) -> None:
    drafts = await run(stack, IngestPipeline((Processor(EXPAND),)), {"text": ""}, {}, {"text": 5}, {"text": ["a", 5]})
    assert expander.calls == []
    assert drafts[0].sparse["expansion"] == sparse_vector([], [])
    messages = [draft.failure.error.message if draft.failure else None for draft in drafts]
    assert messages[0] is None
    assert messages[1] == 'Field "text" does not exist in the document.'
    assert messages[2] == messages[3] == 'Field "text" is neither a string nor a list of strings.'


async def test_the_result_takes_the_place_of_what_is_there(stack: Any) -> None:
    (draft,) = await run(stack, IngestPipeline((Processor(EXPAND),)), {"text": "new", "expansion": {"old": 1}})
    assert weights(draft, "expansion") == words("new")
    assert draft.body == {"text": "new"}


class Picky(FakeExpander):
    """Refuses calls with the word "long" in any text, and more than five texts unless it may wait."""

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Expand."""
        if any("long" in text for text in texts) or (len(texts) > 5 and not wait):
            raise InvalidArgumentError("A text is too long.", reason="TEXT_TOO_LONG")
        return await super().expand(context, deployment_id, texts, side, wait=wait)


async def test_only_the_guilty_documents_fail(make_stack: Callable[..., Any]) -> None:
    stack = await make_stack(Picky())
    bodies = [{"text": f"word{n}" if n % 7 else [f"word{n}", "too long"]} for n in range(30)]
    drafts = await run(stack, IngestPipeline((Processor(EXPAND),)), *bodies)
    assert [draft.failure is not None for draft in drafts] == [n % 7 == 0 for n in range(30)]
    assert all("expansion" in draft.sparse for draft in drafts if draft.failure is None)


async def test_failures_are_handled(stack: Any) -> None:
    pipeline = IngestPipeline(
        (
            Processor(
                EXPAND,
                tag="the tag",
                on_failure=(Processor(SetProcessor("error", MESSAGE)), Processor(SetProcessor("handled", "{{error}}"))),
            ),
            Processor(SetProcessor("after", "{{_ingest.on_failure_message}}.")),
        )
    )
    good, bad = await run(stack, pipeline, {"text": "word"}, {})
    assert good.body == {"text": "word", "after": "."}
    message = 'inference/the tag: Field "text" does not exist in the document.'
    assert bad.failure is None
    assert bad.body == {"error": message, "handled": message, "after": "."}


async def test_failures_may_be_ignored(stack: Any) -> None:
    steps = (Processor(EXPAND, ignore_failure=True), Processor(SetProcessor("after", 1)))
    (draft,) = await run(stack, IngestPipeline(steps), {})
    assert (draft.failure, draft.body) == (None, {"after": 1})
    fails_again = Processor(EXPAND, ignore_failure=True, on_failure=(Processor(FailProcessor("again")),))
    (draft,) = await run(stack, IngestPipeline((fails_again,)), {})
    assert draft.failure is None


async def test_the_pipelines_own_handlers_come_last(stack: Any) -> None:
    pipeline = IngestPipeline(
        (
            Processor(FailProcessor("first {{a}}"), tag="t", on_failure=(Processor(FailProcessor("second {{a}}")),)),
            Processor(SetProcessor("never", 1)),
        ),
        on_failure=(Processor(SetProcessor("error", MESSAGE)),),
    )
    (draft,) = await run(stack, pipeline, {"a": "x"})
    assert draft.failure is None
    assert draft.body == {"a": "x", "error": "fail/: second x"}
    hopeless = IngestPipeline(pipeline.processors, on_failure=(Processor(FailProcessor("third"), tag="last"),))
    (draft,) = await run(stack, hopeless, {})
    assert draft.failure is not None
    assert (draft.failure.error.message, draft.failure.processor_tag) == ("third", "last")


class Busy(FakeExpander):
    """Has no room."""

    async def expand(
        self,
        context: RequestContext,
        deployment_id: str,
        texts: Sequence[str],
        side: Side | None,
        *,
        wait: bool = False,
    ) -> Expansions:
        """Refuse."""
        del context, deployment_id, texts, side, wait
        raise ResourceExhaustedError("The queue is full.", retry_after=timedelta(seconds=1))


async def test_a_full_queue_is_no_failure_to_handle(make_stack: Callable[..., Any]) -> None:
    stack = await make_stack(Busy())
    ignored = Processor(EXPAND, ignore_failure=True, on_failure=(Processor(SetProcessor("error", "x")),))
    pipeline = IngestPipeline((ignored,), on_failure=(Processor(SetProcessor("error", "y")),))
    (draft,) = await run(stack, pipeline, {"text": "word"})
    assert draft.failure is not None
    assert isinstance(draft.failure.error, ResourceExhaustedError)
    assert draft.body == {"text": "word"}


async def test_a_full_queue_fails_a_single_write(make_stack: Callable[..., Any], put: Callable[..., Any]) -> None:
    stack = await make_stack(Busy())
    with pytest.raises(ResourceExhaustedError) as caught:
        await stack.writer.write(stack.context, put("1", b'{"text":"word"}'))
    assert caught.value.retry_after is not None
    assert caught.value.metadata["pipeline"] == "expand"


async def test_steps_too_large_to_show_are_refused(stack: Any) -> None:
    pipeline = IngestPipeline((Processor(SetProcessor("a", 1)),) * 200)
    body = {"text": "x" * 2**20}
    with pytest.raises(InvalidArgumentError, match="too large to show"):
        await run(stack, pipeline, body, verbose=True)
    (draft,) = await run(stack, pipeline, body)
    assert draft.failure is None


async def test_an_unknown_deployment_fails_the_documents(stack: Any) -> None:
    unknown = InferenceProcessor("for_injest", EXPAND.input_output)
    (draft,) = await run(stack, IngestPipeline((Processor(unknown),)), {"text": "word"})
    assert draft.failure is not None
    assert isinstance(draft.failure.error, NotFoundError)


async def test_a_verbose_run_shows_each_step(stack: Any) -> None:
    pipeline = IngestPipeline(
        (
            Processor(SetProcessor("a", 1), tag="one"),
            Processor(SetProcessor("a", 2, override=False)),
            Processor(EXPAND, on_failure=(Processor(SetProcessor("b", 2)),)),
            Processor(FailProcessor("x"), ignore_failure=True),
            Processor(FailProcessor("y")),
            Processor(SetProcessor("never", 1)),
        ),
        on_failure=(Processor(SetProcessor("c", 3)),),
    )
    (draft,) = await run(stack, pipeline, {}, verbose=True)
    assert [(step.processor_type, step.tag, step.status, json.loads(step.document.source)) for step in draft.steps] == [
        ("set", "one", StepStatus.SUCCESS, {"a": 1}),
        ("set", "", StepStatus.SKIPPED, {"a": 1}),
        ("inference", "", StepStatus.ERROR_IGNORED, {"a": 1}),
        ("set", "", StepStatus.SUCCESS, {"a": 1, "b": 2}),
        ("fail", "", StepStatus.ERROR_IGNORED, {"a": 1, "b": 2}),
        ("fail", "", StepStatus.ERROR, {"a": 1, "b": 2}),
        ("set", "", StepStatus.SUCCESS, {"a": 1, "b": 2, "c": 3}),
    ]
    assert [step.failure.error.message if step.failure else "" for step in draft.steps][-3:] == ["x", "y", ""]


async def test_pipelines_are_stored(stack: Any) -> None:
    first = await stack.pipelines.put("p", IngestPipeline(version=1))
    second = await stack.pipelines.put("p", IngestPipeline((Processor(EXPAND),), version=2))
    assert second.create_time == first.create_time
    assert second.update_time >= first.update_time
    assert await stack.pipelines.get("p") == second
    assert [name for name, _ in await stack.pipelines.list()] == ["expand", "p"]
    assert await stack.pipelines.references_to_deployment("for_ingest") == ['pipeline "expand"', 'pipeline "p"']
    await stack.pipelines.delete("p")
    for call in (stack.pipelines.get("p"), stack.pipelines.delete("p")):
        with pytest.raises(NotFoundError):
            await call
    for bad in ("", "_none", "No Id"):
        with pytest.raises(InvalidArgumentError):
            await stack.pipelines.put(bad, IngestPipeline())


async def test_a_default_pipeline_is_not_deleted(stack: Any) -> None:
    with pytest.raises(FailedPreconditionError, match='default of index "docs"'):
        await stack.pipelines.delete("expand")
    await stack.indices.delete("docs")
    await stack.pipelines.delete("expand")


async def test_pipelines_outlive_a_restart(stack: Any, make_stack: Callable[..., Any], expander: FakeExpander) -> None:
    await stack.pipelines.put("p", IngestPipeline((Processor(SetProcessor("a", np.pi)),), description="π"))
    assert await (await make_stack(expander)).pipelines.get("p") == await stack.pipelines.get("p")
