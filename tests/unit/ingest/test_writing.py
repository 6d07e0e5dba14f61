from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    invalid_field,
    not_found,
)
from termwise.server.indices.mapping import FieldMapping, Mapping
from termwise.server.inference.fake import FakeEncoder, FakeExpander, word_weight
from termwise.server.ingest.processors import (
    FailProcessor,
    InferenceProcessor,
    IngestPipeline,
    InputOutput,
    Processor,
    SetProcessor,
)
from termwise.server.ingest.writing import WriteResult
from termwise.storage.errors import StorageFullError
from termwise.storage.memory import MemoryStore
from termwise.storage.types import FieldKind, Result, sparse_vector

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from termwise.server.ingest.writing import WriteOperation
    from termwise.storage.base import SparseIndex
    from termwise.storage.types import Operation, Outcome


async def fails(stack: Any, operation: WriteOperation, kind: type[Exception]) -> Any:
    with pytest.raises(kind) as caught:
        await stack.writer.write(stack.context, operation)
    return caught.value


async def test_a_document_is_written_expanded_and_read(stack: Any, put: Callable[..., WriteOperation]) -> None:
    source = b'{ "text" : "pluto planet", "n": 1.50 }'
    written = await stack.writer.write(stack.context, put("1", source))
    assert (written.id, written.seq_no, written.result) == ("1", 1, Result.CREATED)
    opened, found = await stack.writer.get("docs", "1")
    assert opened.record.name == "docs"
    assert (found.source, found.seq_no) == (source, 1)
    vector = found.sparse["expansion"]
    assert dict(zip(vector.tokens, vector.weights.tolist(), strict=True)) == {
        word: word_weight(word) for word in ("pluto", "planet")
    }
    again = await stack.writer.write(stack.context, put("1", b"{}"))
    assert (again.seq_no, again.result) == (2, Result.UPDATED)


async def test_ids_are_made_up(stack: Any, put: Callable[..., WriteOperation]) -> None:
    ids = {(await stack.writer.write(stack.context, put(""))).id for _ in range(5)}
    assert len(ids) == 5
    for id_ in ids:
        assert (await stack.writer.get("docs", id_))[1].id == id_


async def test_conditions_on_versions(
    stack: Any, put: Callable[..., WriteOperation], delete: Callable[..., WriteOperation]
) -> None:
    await fails(stack, put("1", if_version=5), AbortedError)
    await stack.writer.write(stack.context, put("1", if_version=0))
    error = await fails(stack, put("1", create=True), AlreadyExistsError)
    assert (error.resource.kind, error.resource.name) == ("document", "1")
    await fails(stack, put("1", if_version=0), AbortedError)
    await fails(stack, delete("1", if_version=9), AbortedError)
    error = await fails(stack, put("1", if_version=-1), InvalidArgumentError)
    assert error.violations[0].field == "if_version"
    await stack.writer.write(stack.context, put("1", if_version=1))
    gone = await stack.writer.write(stack.context, delete("1", if_version=2))
    assert (gone.seq_no, gone.result) == (3, Result.DELETED)
    await fails(stack, delete("1"), NotFoundError)
    with pytest.raises(NotFoundError):
        await stack.writer.get("docs", "1")
    assert (await stack.writer.write(stack.context, put("1", create=True))).seq_no == 4


async def test_what_is_missing_is_named(
    stack: Any, put: Callable[..., WriteOperation], delete: Callable[..., WriteOperation]
) -> None:
    error = await fails(stack, put("1", index="dosc"), NotFoundError)
    assert 'did you mean "docs"' in error.message
    assert error.violations[0].field == "index"
    error = await fails(stack, put("1", index=""), InvalidArgumentError)
    assert error.violations[0].field == "index"
    error = await fails(stack, put("1", pipeline="expnad"), NotFoundError)
    assert 'did you mean "expand"' in error.message
    assert error.violations[0].field == "pipeline"
    assert (await fails(stack, put("x" * 513), InvalidArgumentError)).violations[0].field == "document.id"
    assert (await fails(stack, delete(""), InvalidArgumentError)).violations[0].field == "id"
    for bad, field in ((b"[]", "document.source"), (b'{"year": 1.5}', "document.source.year")):
        assert (await fails(stack, put("1", bad), InvalidArgumentError)).violations[0].field == field


async def test_which_pipeline_runs(stack: Any, expander: FakeExpander, put: Callable[..., WriteOperation]) -> None:
    await stack.pipelines.put("mark", IngestPipeline((Processor(SetProcessor("mark", value=True)),)))
    source = b'{"text":"word"}'
    await stack.writer.write(stack.context, put("default", source))
    await stack.writer.write(stack.context, put("none", source, pipeline="_none"))
    await stack.writer.write(stack.context, put("other", source, pipeline="mark"))
    assert len(expander.calls) == 1
    found = {id_: await stack.get(id_) for id_ in ("default", "none", "other")}
    assert list(found["default"].sparse) == ["expansion"]
    assert (found["none"].source, found["none"].sparse) == (source, {})
    assert (found["other"].source, found["other"].sparse) == (b'{"text":"word","mark":true}', {})


async def test_an_error_of_a_pipeline_says_where(stack: Any, put: Callable[..., WriteOperation]) -> None:
    await stack.pipelines.put("picky", IngestPipeline((Processor(FailProcessor("no {{text}}"), tag="t"),)))
    error = await fails(stack, put("1", b'{"text":"x"}', pipeline="picky"), InvalidArgumentError)
    assert error.message == 'Pipeline "picky", processor fail "t": no x'
    assert error.metadata == {"pipeline": "picky", "processor_type": "fail", "processor_tag": "t"}
    assert await stack.get("1") is None


async def test_what_inference_refuses_is_no_field_of_the_write(
    stack: Any, expander: FakeExpander, put: Callable[..., WriteOperation], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise errors.pop()

    errors = [invalid_field("texts", "It is too long."), not_found("deployment", "for_ingest", field="deployment_id")]
    monkeypatch.setattr(expander, "expand", refuse)
    error = await fails(stack, put("1", b'{"text":"x"}'), NotFoundError)
    assert error.violations == ()
    assert (error.resource.name, error.metadata["pipeline"]) == ("for_ingest", "expand")
    error = await fails(stack, put("1", b'{"text":"x"}'), InvalidArgumentError)
    assert (error.message, error.violations) == ('Pipeline "expand", processor inference: It is too long.', ())


async def test_vectors_must_fit_the_mapping(stack: Any, put: Callable[..., WriteOperation]) -> None:
    vector = sparse_vector(["a"], [1])
    await stack.writer.write(stack.context, put("1", expansion=vector))
    assert (await stack.get("1")).sparse == {"expansion": vector}
    error = await fails(stack, put("1", pipeline="_none", text=vector), InvalidArgumentError)
    assert error.violations[0].field == 'document.sparse_vectors["text"]'
    lost = InferenceProcessor("for_ingest", (InputOutput("text", "nowhere"),))
    await stack.pipelines.put("lost", IngestPipeline((Processor(lost),)))
    error = await fails(stack, put("1", b'{"text":"x"}', pipeline="lost"), InvalidArgumentError)
    assert error.violations[0].field == 'document.sparse_vectors["nowhere"]'


async def test_a_field_takes_vectors_of_one_model(
    stack: Any, expander: FakeExpander, put: Callable[..., WriteOperation]
) -> None:
    expander.encoders["other"] = FakeEncoder(max_tokens=7)
    other = InferenceProcessor("other", (InputOutput("text", "expansion"),))
    await stack.pipelines.put("other", IngestPipeline((Processor(other),)))
    given = sparse_vector(["a"], [1])
    await stack.writer.write(stack.context, put("given", b"{}", pipeline="_none", expansion=given))
    await stack.writer.write(stack.context, put("empty", b'{"text":""}', pipeline="other"))
    await fails(stack, put("bad", b'{"text":"x","year":"x"}', pipeline="other"), InvalidArgumentError)
    assert (await stack.indices.open("docs")).fingerprints == {}

    await stack.writer.write(stack.context, put("1", b'{"text":"x"}'))
    bound = (await stack.indices.open("docs")).fingerprints["expansion"]
    error = await fails(stack, put("2", b'{"text":"x"}', pipeline="other"), FailedPreconditionError)
    assert '"expansion"' in error.message
    assert error.metadata["field_fingerprint"] == bound
    assert error.metadata["document_fingerprint"] != bound
    await stack.writer.write(stack.context, put("2", b"{}", pipeline="_none", expansion=given))
    await stack.writer.write(stack.context, put("3", b'{"text":"y"}'))


async def test_two_first_writers_of_different_models_do_not_both_win(
    stack: Any, expander: FakeExpander, put: Callable[..., WriteOperation]
) -> None:
    expander.encoders["other"] = FakeEncoder(max_tokens=7)
    other = InferenceProcessor("other", (InputOutput("text", "expansion"),))
    await stack.pipelines.put("other", IngestPipeline((Processor(other),)))
    outcomes = await asyncio.gather(
        *(
            stack.writer.write(stack.context, put(str(n), b'{"text":"x"}', pipeline=("other", "expand")[n % 2]))
            for n in range(10)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, FailedPreconditionError) for outcome in outcomes) == 5


async def test_the_model_that_a_mapping_names_is_the_one(stack: Any, put: Callable[..., WriteOperation]) -> None:
    for name, model in (("right", "fake"), ("alias", "invented"), ("wrong", "splade")):
        vector = FieldMapping(FieldKind.SPARSE_VECTOR, model_id=model)
        await stack.indices.create(name, Mapping({"expansion": vector}))
    for name in ("right", "alias"):
        await stack.writer.write(stack.context, put("1", b'{"text":"x"}', index=name, pipeline="expand"))
    operation = put("1", b'{"text":"x"}', index="wrong", pipeline="expand")
    error = await fails(stack, operation, FailedPreconditionError)
    assert error.metadata["field_model_id"] == "splade"


async def test_a_batch_gives_each_operation_its_result(
    stack: Any,
    expander: FakeExpander,
    put: Callable[..., WriteOperation],
    delete: Callable[..., WriteOperation],
) -> None:
    await stack.indices.create("more", Mapping({"expansion": FieldMapping(FieldKind.SPARSE_VECTOR)}))
    results = await stack.writer.batch(
        stack.context,
        [
            put("1", b'{"text":"one"}'),
            put("2", b"{"),
            put("1", b'{"text":"two"}', create=True),
            delete("1"),
            WriteResult("none", error=ValueError("it never was an operation")),
            put("1", b'{"text":"three"}', create=True),
            put("9", b'{"text":"four"}', index="more", pipeline="expand"),
            put("8", index="absent"),
            delete("7"),
            put("6", b'{"text":"five"}', pipeline="absent"),
        ],
    )
    assert [result.id for result in results] == ["1", "2", "1", "1", "none", "1", "9", "8", "7", "6"]
    assert [result.written.seq_no if result.written else type(result.error) for result in results] == [
        1,
        InvalidArgumentError,
        AlreadyExistsError,
        2,
        ValueError,
        3,
        1,
        NotFoundError,
        NotFoundError,
        NotFoundError,
    ]
    assert [texts for _, texts, _ in expander.calls] == [["one", "two", "three", "four"]]
    assert (await stack.get("1")).source == b'{"text":"three"}'


async def test_a_passed_deadline_fails_the_write(stack: Any, put: Callable[..., WriteOperation]) -> None:
    late = RequestContext("late", deadline=0.0)
    with pytest.raises(DeadlineExceededError):
        await stack.writer.write(late, put("1", b'{"text":"x"}'))


class FullIndex:
    """A memory index on a full disk."""

    def __init__(self, inner: SparseIndex) -> None:
        """Wrap an index."""
        self.schema, self.reader, self.close = inner.schema, inner.reader, inner.close

    def write(self, operations: Sequence[Operation]) -> list[Outcome]:
        """Fail."""
        raise StorageFullError(f"The disk has no room for {len(operations)} operations.")


class FullStore(MemoryStore):
    """A store whose indices are full."""

    def open(self, name: str) -> Any:
        """Open."""
        return FullIndex(super().open(name))


async def test_a_full_disk_asks_to_come_back(
    make_stack: Callable[..., Any], put: Callable[..., WriteOperation]
) -> None:
    stack = await make_stack(FakeExpander(), FullStore())
    error = await fails(stack, put("1"), ResourceExhaustedError)
    assert error.retry_after is not None
    results = await stack.writer.batch(stack.context, [put("1"), put("2", b"{")])
    assert [type(result.error) for result in results] == [ResourceExhaustedError, InvalidArgumentError]
