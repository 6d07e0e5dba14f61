from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.indices.mapping import MAX_FIELDS, FieldMapping, Mapping, check_mapping
from termwise.storage.types import FieldKind, FieldSpec

TEXT = FieldMapping(FieldKind.TEXT)
KEYWORD = FieldMapping(FieldKind.KEYWORD)
SPARSE = FieldMapping(FieldKind.SPARSE_VECTOR)

names = st.text("ab._é", min_size=1, max_size=5)
plain = st.one_of(
    st.builds(FieldMapping, st.just(FieldKind.TEXT), analyzer=st.sampled_from(["standard", "english"])),
    st.builds(FieldMapping, st.sampled_from([FieldKind.KEYWORD, FieldKind.DATE, FieldKind.BOOLEAN])),
)
fields = st.one_of(
    plain.flatmap(
        lambda each: st.dictionaries(names, plain, max_size=2).map(
            lambda subs: FieldMapping(each.kind, each.analyzer, fields=subs)
        )
    ),
    st.builds(
        FieldMapping,
        st.just(FieldKind.SPARSE_VECTOR),
        model_id=st.just("m"),
        search_deployment_id=st.sampled_from(["", "d"]),
    ),
)


@given(st.builds(Mapping, st.dictionaries(names, fields, max_size=4), st.booleans()))
def test_a_mapping_survives_storage(mapping: Mapping) -> None:
    assert Mapping.from_json(json.loads(json.dumps(mapping.to_json()))) == mapping


def test_other_ways_to_search_a_value_stand_under_its_name() -> None:
    title = FieldMapping(FieldKind.TEXT, "english", fields={"raw": KEYWORD})
    mapping = Mapping({"title": title, "author.name": TEXT, "vector": SPARSE})
    assert mapping.schema().fields == {
        "title": FieldSpec(FieldKind.TEXT, "english"),
        "title.raw": FieldSpec(FieldKind.KEYWORD),
        "author.name": FieldSpec(FieldKind.TEXT),
        "vector": FieldSpec(FieldKind.SPARSE_VECTOR),
    }
    assert mapping.sparse_fields == {"vector"}
    assert mapping.objects == {"author"}
    check_mapping(mapping)


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        ({"": TEXT}, 'mapping.properties[""]'),
        ({".a": TEXT}, 'mapping.properties[".a"]'),
        ({"a..b": TEXT}, 'mapping.properties["a..b"]'),
        ({"a\0": TEXT}, 'mapping.properties["a\0"]'),
        ({"é" * 128: TEXT}, f'mapping.properties["{"é" * 128}"]'),
        ({".".join("a" * 31): TEXT}, f'mapping.properties["{".".join("a" * 31)}"]'),
        ({"a": TEXT, "a.b": TEXT}, 'mapping.properties["a.b"]'),
        ({"a": SPARSE, "a.b.c": TEXT}, 'mapping.properties["a.b.c"]'),
        ({"a": FieldMapping(FieldKind.TEXT, fields={"raw": KEYWORD}), "a.raw": TEXT}, 'mapping.properties["a.raw"]'),
        ({"a": FieldMapping(FieldKind.TEXT, "klingon")}, 'mapping.properties["a"].text.analyzer'),
        ({"a": FieldMapping(FieldKind.TEXT, fields={"": KEYWORD})}, 'mapping.properties["a"].fields[""]'),
        ({"a": FieldMapping(FieldKind.TEXT, fields={"b.c": KEYWORD})}, 'mapping.properties["a"].fields["b.c"]'),
        ({"a": FieldMapping(FieldKind.TEXT, fields={"v": SPARSE})}, 'mapping.properties["a"].fields["v"]'),
        (
            {"a": FieldMapping(FieldKind.TEXT, fields={"b": FieldMapping(FieldKind.TEXT, fields={"c": KEYWORD})})},
            'mapping.properties["a"].fields["b"].fields',
        ),
        (
            {"a": FieldMapping(FieldKind.KEYWORD, fields={"b": FieldMapping(FieldKind.TEXT, "klingon")})},
            'mapping.properties["a"].fields["b"].text.analyzer',
        ),
        ({"a": FieldMapping(FieldKind.SPARSE_VECTOR, fields={"b": KEYWORD})}, 'mapping.properties["a"].fields'),
        (
            {"a": FieldMapping(FieldKind.SPARSE_VECTOR, model_id="No Id")},
            'mapping.properties["a"].sparse_vector.model_id',
        ),
        (
            {"a": FieldMapping(FieldKind.SPARSE_VECTOR, search_deployment_id="No Id")},
            'mapping.properties["a"].sparse_vector.search_deployment_id',
        ),
        ({f"f{number}": TEXT for number in range(MAX_FIELDS + 1)}, "mapping.properties"),
    ],
)
def test_entries_that_cannot_work_are_named(properties: dict[str, FieldMapping], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_mapping(Mapping(properties))
    assert [violation.field for violation in caught.value.violations] == [field]
