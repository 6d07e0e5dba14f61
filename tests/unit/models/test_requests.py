from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from termwise.server.errors import InvalidArgumentError, NotFoundError
from termwise.server.inference.base import ExpansionConfig
from termwise.server.models.packaged import PACKAGED
from termwise.server.models.requests import (
    AdaptiveAllocations,
    NewDeployment,
    NewModel,
    check_config,
    check_deployment,
    check_model,
    check_package,
    unknown_packaged,
)

GOOD = NewModel("mine", "file:///folder")
CONFIG = "inference_config.text_expansion"


def check(model: NewModel) -> None:
    check_model(model)
    if model.model_id in PACKAGED:
        check_package(model, PACKAGED[model.model_id])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_id": ""}, "model_id"),
        ({"model_id": "Mine"}, "model_id"),
        ({"model_id": "a" * 256}, "model_id"),
        ({"model_id": ".."}, "model_id"),
        ({"sha256": "abc"}, "sha256"),
        ({"sha256": "g" * 64}, "sha256"),
        ({"description": "x" * 4_097}, "description"),
        ({"tags": ("a", "")}, "tags[1]"),
        ({"tags": ("a",) * 101}, "tags"),
        ({"tags": ("a" * 257,)}, "tags[0]"),
        ({"metadata": {"owner": "x" * 4_097}}, 'metadata["owner"]'),
        ({"metadata": {"k" * 257: ""}}, "metadata"),
        ({"config": ExpansionConfig(max_tokens=2)}, f"{CONFIG}.max_tokens"),
        ({"config": ExpansionConfig(max_tokens=-1)}, f"{CONFIG}.max_tokens"),
        ({"config": ExpansionConfig(document_max_terms=-1)}, f"{CONFIG}.document_max_terms"),
        ({"config": ExpansionConfig(query_max_terms=-1)}, f"{CONFIG}.query_max_terms"),
        ({"config": ExpansionConfig(min_weight=-0.5)}, f"{CONFIG}.min_weight"),
        ({"config": ExpansionConfig(min_weight=math.nan)}, f"{CONFIG}.min_weight"),
        ({"config": ExpansionConfig(min_weight=math.inf)}, f"{CONFIG}.min_weight"),
        ({"config": ExpansionConfig(query_prefix="x" * 1_025)}, f"{CONFIG}.query_prefix"),
        ({"model_id": ".splade_tiny"}, "source_uri"),
        ({"model_id": ".splade_tiny", "source_uri": "", "sha256": "0" * 64}, "sha256"),
        (
            {"model_id": ".splade_tiny", "source_uri": "", "config": ExpansionConfig(max_tokens=513)},
            f"{CONFIG}.max_tokens",
        ),
    ],
)
def test_a_bad_field_of_a_model_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    "model",
    [
        GOOD,
        NewModel(".splade_tiny"),
        NewModel(".splade_tiny", config=ExpansionConfig(max_tokens=512)),
        NewModel(".splade_tiny", PACKAGED[".splade_tiny"].source_uri, PACKAGED[".splade_tiny"].sha256.upper()),
        dataclasses.replace(GOOD, sha256="aF" * 32, config=ExpansionConfig(max_tokens=3, min_weight=0.25)),
    ],
)
def test_a_good_model_passes(model: NewModel) -> None:
    check(model)


def test_an_unknown_packaged_model_is_not_found_and_the_known_are_named() -> None:
    with pytest.raises(NotFoundError, match=r'did you mean "\.splade_tiny"\?.*begin with a dot: \.splade_tiny'):
        raise unknown_packaged(".splade_tinny", PACKAGED)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_id": ""}, "model_id"),
        ({"deployment_id": "For Search"}, "deployment_id"),
        ({"number_of_allocations": 0}, "number_of_allocations"),
        ({"number_of_allocations": 2, "adaptive": AdaptiveAllocations()}, "number_of_allocations"),
        ({"adaptive": AdaptiveAllocations(-1)}, "adaptive_allocations.min_number_of_allocations"),
        ({"adaptive": AdaptiveAllocations(3, 2)}, "adaptive_allocations.max_number_of_allocations"),
        ({"adaptive": AdaptiveAllocations(0, 0)}, "adaptive_allocations.max_number_of_allocations"),
        ({"priority": "high"}, "priority"),
        ({"priority": "low", "number_of_allocations": 2}, "number_of_allocations"),
        ({"priority": "low", "threads_per_allocation": 2}, "threads_per_allocation"),
        ({"priority": "low", "adaptive": AdaptiveAllocations()}, "adaptive_allocations"),
        ({"threads_per_allocation": -1}, "threads_per_allocation"),
        ({"queue_capacity": 0}, "queue_capacity"),
        ({"queue_capacity": 100_000}, "queue_capacity"),
    ],
)
def test_a_bad_field_of_a_deployment_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_deployment(dataclasses.replace(NewDeployment("mine"), **change))  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field


@given(st.integers(-40, 80))
def test_threads_are_a_power_of_two_up_to_32(threads: int) -> None:
    try:
        check_deployment(NewDeployment("mine", threads_per_allocation=threads))
        accepted = True
    except InvalidArgumentError:
        accepted = False
    assert accepted == (threads in {1, 2, 4, 8, 16, 32})


@given(st.integers(-(2**31), 2**31 - 1), st.floats(width=32))
def test_any_configuration_is_accepted_or_named(number: int, weight: float) -> None:
    config = ExpansionConfig(max_tokens=number, document_max_terms=number, query_max_terms=number, min_weight=weight)
    good = (number == 0 or number >= 3) and weight >= 0 and math.isfinite(weight)
    try:
        check_config(config)
        assert good
    except InvalidArgumentError as error:
        assert not good
        assert error.violations[0].field.startswith(CONFIG)  # noqa: PT017
