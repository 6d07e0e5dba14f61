from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError
from termwise.server.ingest.paths import ABSENT
from termwise.server.ingest.templates import check_template, render, render_all

FIELDS: dict[str, Any] = {"a": "A", "b": "{{a}}", "n": 5, "x": 1.5, "yes": True, "none": None, "list": [1, "two"]}


def get(path: str) -> Any:
    return FIELDS.get(path, ABSENT)


def shown(path: str) -> str:
    value = FIELDS.get(path)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


paths = st.sampled_from([*FIELDS, "absent", "_ingest.on_failure_message"])
plain = st.text("ab{} ", max_size=4).filter(lambda text: "{{" not in text and "}}" not in text)


@given(st.lists(st.tuples(plain, paths, st.booleans(), st.text(" ", max_size=2))), plain)
def test_templates_are_replaced_once(parts: list[tuple[str, str, bool, str]], tail: str) -> None:
    template, expected = "", ""
    for text, path, three, space in parts:
        kept = text.replace("{", "(").replace("}", ")")
        inner = f"{space}{path}{space}"
        template += kept + (f"{{{{{{{inner}}}}}}}" if three else f"{{{{{inner}}}}}")
        expected += kept + shown(path)
    tail = tail.replace("{", "(").replace("}", ")")
    check_template(template + tail, "value")
    assert render(template + tail, get) == expected + tail


@given(plain)
def test_text_without_templates_stays(text: str) -> None:
    assert render(text, get) == text


@pytest.mark.parametrize("template", ["{{", "a {{b", "{{}}", "{{  }}", "{{{}}}", "{{a}} {{", "{{a{b}}"])
def test_templates_that_cannot_be_read_are_refused(template: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_template(template, "pipeline.processors[0].set.value")
    assert caught.value.violations[0].field == "pipeline.processors[0].set.value"


def test_strings_inside_values_are_rendered() -> None:
    value = {"{{a}}": ["{{a}}", 1, None, {"deep": "{{n}}{{x}}{{yes}}"}]}
    assert render_all(value, get) == {"{{a}}": ["A", 1, None, {"deep": "51.5true"}]}


def test_a_text_that_grows_without_end_is_stopped() -> None:
    with pytest.raises(InvalidArgumentError):
        render("{{a}}" * 40, lambda _: "x" * 2**20)
