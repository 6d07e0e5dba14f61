"""Other names of models, and the name space that models, aliases and deployments share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from termwise.server.context import RequestContext
from termwise.server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from termwise.server.models.requests import ModelWait, NewDeployment, NewModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTEXT = RequestContext("test")


@pytest.fixture
async def two(life: Any, source: Path) -> Any:
    """Give a life in which the models "old" and "new" are READY."""
    for name in ("old", "new"):
        await life.catalog.put(CONTEXT, NewModel(name, f"file://{source}"), ModelWait.READY)
    return life


async def expand(life: Any, name: str) -> str:
    """Give the model that answers under a name."""
    return str((await life.deployments.expand(CONTEXT, name, ["salmon"], None)).model_id)


async def test_an_alias_stands_wherever_a_model_does(two: Any) -> None:
    model = await two.catalog.put_alias("current", "old")
    assert model.aliases == ("current",)
    assert (await two.catalog.get("current")).record.model_id == "old"
    assert [each.record.model_id for each in await two.catalog.list(patterns=["curr*"])] == ["old"]
    deployment = await two.deployments.start(CONTEXT, NewDeployment("current"))
    assert (deployment.record.deployment_id, deployment.record.model_id) == ("old", "old")
    assert await expand(two, "current") == "old"


async def test_a_model_or_its_alias_means_a_deployment_that_is_up(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    for name in ("current", "old"):
        with pytest.raises(NotFoundError, match=r"no deployment runs; start one|start a deployment of it"):
            await expand(two, name)
    await two.deployments.start(CONTEXT, NewDeployment("old", "first"))
    await two.deployments.start(CONTEXT, NewDeployment("old", "second"))
    await two.deployments.stop(CONTEXT, "first")
    for name in ("current", "old", "second"):
        assert await expand(two, name) == "old"


async def test_an_alias_moves_only_when_asked_to(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    with pytest.raises(AlreadyExistsError, match='model "old"'):
        await two.catalog.put_alias("current", "new")
    await two.catalog.put_alias("current", "old")  # nothing changes
    assert (await two.catalog.put_alias("current", "new", reassign=True)).aliases == ("current",)
    assert (await two.catalog.get("old")).aliases == ()


async def test_an_alias_in_use_moves_to_a_deployed_model_only(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    await two.deployments.start(CONTEXT, NewDeployment("old"))
    with pytest.raises(FailedPreconditionError, match='model "new" is not; deploy it first'):
        await two.catalog.put_alias("current", "new", reassign=True)
    await two.deployments.start(CONTEXT, NewDeployment("new"))
    await two.catalog.put_alias("current", "new", reassign=True)
    assert await expand(two, "current") == "new"


@pytest.mark.parametrize(
    ("alias", "why"),
    [
        ("", "empty"),
        ("Upper", "no name"),
        ("model_2", "ends in a digit"),
        (".elser_model", "begins with a dot"),
        ("new", "id of a model"),
        (".splade_tiny", "begins with a dot"),
        ("for_search", "id of a deployment"),
    ],
)
async def test_what_may_not_be_an_alias(two: Any, alias: str, why: str) -> None:
    await two.deployments.start(CONTEXT, NewDeployment("old", "for_search"))
    with pytest.raises(InvalidArgumentError, match=why) as caught:
        await two.catalog.put_alias(alias, "old")
    assert caught.value.violations[0].field == "alias"


async def test_neither_a_model_nor_a_deployment_takes_an_aliass_name(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    with pytest.raises(AlreadyExistsError, match='alias of model "old"'):
        await two.catalog.put(CONTEXT, NewModel("current", "held://x"))
    for model_id in ("old", "new"):
        with pytest.raises(InvalidArgumentError, match="alias of a model") as caught:
            await two.deployments.start(CONTEXT, NewDeployment(model_id, "current"))
        assert caught.value.violations[0].field == "deployment_id"


async def test_an_alias_needs_a_model(two: Any) -> None:
    with pytest.raises(NotFoundError, match='did you mean "new"'):
        await two.catalog.put_alias("current", "news")


async def test_an_alias_is_taken_away(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    with pytest.raises(NotFoundError, match='model "old"'):
        await two.catalog.delete_alias("current", "new")
    await two.catalog.delete_alias("current", "old")
    with pytest.raises(NotFoundError):
        await two.catalog.delete_alias("current")
    with pytest.raises(NotFoundError):
        await two.catalog.get("current")


async def test_an_alias_that_something_uses_stays(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    two.users["current"] = ['pipeline "expand"']
    with pytest.raises(FailedPreconditionError, match='used by pipeline "expand"'):
        await two.catalog.delete_alias("current")
    assert (await two.catalog.get("current")).record.model_id == "old"


async def test_aliases_go_with_their_model_and_come_back_after_a_restart(
    live: Callable[..., Any], source: Path
) -> None:
    first = live()
    await first.catalog.put(CONTEXT, NewModel("old", f"file://{source}"), ModelWait.READY)
    for alias in ("current", "best"):
        await first.catalog.put_alias(alias, "old")
    await first.end()
    second = live()
    await second.restore()
    assert (await second.catalog.get("best")).aliases == ("best", "current")
    await second.catalog.delete("old")
    await second.catalog.put(CONTEXT, NewModel("best", f"file://{source}"), ModelWait.READY)
    assert (await second.catalog.get("best")).aliases == ()


async def test_stopping_the_last_deployment_of_a_model_minds_its_aliases(two: Any) -> None:
    await two.catalog.put_alias("current", "old")
    two.users["current"] = ['index "docs"']
    await two.deployments.start(CONTEXT, NewDeployment("old", "first"))
    await two.deployments.start(CONTEXT, NewDeployment("old", "second"))
    await two.deployments.stop(CONTEXT, "first")
    with pytest.raises(FailedPreconditionError, match=r'used by index "docs"; .* or set force'):
        await two.deployments.stop(CONTEXT, "second")
    await two.deployments.stop(CONTEXT, "second", force=True)


@pytest.mark.parametrize("name", ["old", "current", "for_search"])
async def test_a_model_that_something_uses_is_deleted_by_force_only(two: Any, name: str) -> None:
    await two.catalog.put_alias("current", "old")
    await two.deployments.start(CONTEXT, NewDeployment("old", "for_search"))
    two.users[name] = ['pipeline "expand"']
    with pytest.raises(FailedPreconditionError, match=r'used by deployment "for_search", pipeline "expand"; .* force'):
        await two.deployments.delete_model(CONTEXT, "old")
    await two.deployments.delete_model(CONTEXT, "old", force=True)
    assert [each.record.model_id for each in await two.catalog.list()] == ["new"]
    assert two.deployments.list() == []


async def test_a_model_that_a_pipeline_names_is_not_deleted_once_it_is_stopped(two: Any) -> None:
    two.users["old"] = ['pipeline "expand"']
    with pytest.raises(FailedPreconditionError, match='used by pipeline "expand"; change that first'):
        await two.deployments.delete_model(CONTEXT, "old")
    await two.deployments.delete_model(CONTEXT, "old", force=True)
    with pytest.raises(NotFoundError):
        await two.deployments.delete_model(CONTEXT, "old", force=True)
