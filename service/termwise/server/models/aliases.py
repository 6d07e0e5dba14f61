"""Aliases: other names of models. They are few, so all of them stay in memory beside the metadata store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from termwise.server.errors import FailedPreconditionError, Resource, already_exists, invalid_field, not_found
from termwise.server.identifiers import check_identifier
from termwise.server.metadata.records import AliasRecord, ModelState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from termwise.server.metadata.store import MetadataStore

References: TypeAlias = "Callable[[str], Awaitable[Sequence[str]]]"
"""Gives the names of what uses a deployment, or a model by its id or alias, such as 'pipeline "expand"'."""


async def nobody(_name: str) -> Sequence[str]:
    """Know no users."""
    return ()


def some(users: Sequence[str], most: int = 5) -> str:
    """Name users in a sentence, the first few of many."""
    more = f" and {len(users) - most} more" if len(users) > most else ""
    return f"{', '.join(users[:most])}{more}"


class Aliases:
    """Which aliases there are, and the rules for them. `names` is held while a name is taken or freed."""

    def __init__(
        self, store: MetadataStore, names: asyncio.Lock, references: References, *, reserved: Collection[str]
    ) -> None:
        """Know none; `restore` reads them. `reserved` are model ids that need not be stored to be taken."""
        self._store = store
        self._names = names
        self._references = references
        self._reserved = reserved
        self._known: dict[str, AliasRecord] = {}
        # The same by model, since each answer of a deployment carries them.
        self._of: dict[str, tuple[str, ...]] = {}

    def __contains__(self, alias: str) -> bool:
        """Tell whether there is such an alias."""
        return alias in self._known

    def __iter__(self) -> Iterator[str]:
        """Give all aliases."""
        return iter([*self._known])

    def model_of(self, name: str) -> str:
        """Give the id of the model that an alias means; any other name as it is."""
        record = self._known.get(name)
        return name if record is None else record.model_id

    def of(self, model_id: str) -> tuple[str, ...]:
        """Give a model's aliases, sorted."""
        return self._of.get(model_id, ())

    async def assign(self, alias: str, model_id: str, *, reassign: bool) -> None:
        """Give a model another name.

        Raises:
            InvalidArgumentError: the alias is no name, begins with a dot, ends in a digit, or is the id of a model or a
                deployment.
            NotFoundError: there is no such model.
            AlreadyExistsError: the alias is another model's, and `reassign` is False.
            FailedPreconditionError: the model that has it is deployed and the new one is not, or is being deleted.

        """
        check_identifier(alias, "alias")
        if alias.startswith("."):
            raise invalid_field("alias", "It begins with a dot, as packaged models do; begin it otherwise.")
        if alias[-1].isdigit():
            raise invalid_field("alias", "It ends in a digit, as versions of a model do; end it otherwise.")
        async with self._names:
            record = await asyncio.to_thread(self._store.get_model, model_id)
            if record is None:
                known = [model.model_id for model in await asyncio.to_thread(self._store.list_models)]
                raise not_found("model", model_id, known, field="model_id")
            if record.state is ModelState.DELETING:
                raise FailedPreconditionError(f'Model "{model_id}" is being deleted.', reason="MODEL_BEING_DELETED")
            await self._check_free(alias)
            if alias in self._known:
                await self._check_move(alias, model_id, reassign=reassign)
            made = AliasRecord(alias, model_id, datetime.now(UTC))
            await asyncio.to_thread(self._store.put_alias, made)
            self._keep({**self._known, alias: made})

    async def _check_free(self, alias: str) -> None:
        """Refuse a name that is not an alias's to have."""
        if alias in self._reserved or await asyncio.to_thread(self._store.get_model, alias) is not None:
            raise invalid_field("alias", f'"{alias}" is the id of a model; choose another name.')
        if await asyncio.to_thread(self._store.get_deployment, alias) is not None:
            raise invalid_field("alias", f'"{alias}" is the id of a deployment; choose another name.')

    async def _check_move(self, alias: str, model_id: str, *, reassign: bool) -> None:
        """Keep Elasticsearch's rules: moving is asked for, and users of the alias are not left without a deployment."""
        before = self._known[alias].model_id
        if before == model_id:
            return
        if not reassign:
            raise already_exists("alias", alias, hint=f'It is model "{before}"\'s; set reassign to move it.')
        deployed = {each.model_id for each in await asyncio.to_thread(self._store.list_deployments)}
        if before in deployed and model_id not in deployed:
            raise FailedPreconditionError(
                f'Alias "{alias}" is model "{before}"\'s, which is deployed, and model "{model_id}" is not; deploy it '
                "first.",
                reason="MODEL_NOT_DEPLOYED",
                metadata={"alias": alias, "model": model_id},
                resource=Resource("model", model_id),
            )

    async def delete(self, alias: str, model_id: str) -> None:
        """Take an alias away; with `model_id` only where it is that model's.

        Raises:
            NotFoundError: there is none, or it is another model's.
            FailedPreconditionError: a pipeline or an index uses it.

        """
        async with self._names:
            if alias not in self._known:
                raise not_found("alias", alias, self._known, field="alias")
            owner = self._known[alias].model_id
            if model_id not in {"", owner}:
                raise not_found("alias", alias, field="model_id", hint=f'It is model "{owner}"\'s.')
            if users := await self._references(alias):
                raise FailedPreconditionError(
                    f'Alias "{alias}" is used by {some(users)}; change that first.',
                    reason="ALIAS_IN_USE",
                    metadata={"alias": alias},
                    resource=Resource("alias", alias),
                )
            await asyncio.to_thread(self._store.delete_alias, alias)
            self._keep({name: record for name, record in self._known.items() if name != alias})

    def forget(self, model_id: str) -> None:
        """Drop the aliases of a model that the store has deleted together with them."""
        self._keep({alias: record for alias, record in self._known.items() if record.model_id != model_id})

    async def restore(self) -> None:
        """Read what is stored."""
        self._keep({record.alias: record for record in await asyncio.to_thread(self._store.list_aliases)})

    def _keep(self, known: dict[str, AliasRecord]) -> None:
        self._known = known
        of: dict[str, list[str]] = {}
        for alias in sorted(known):
            of.setdefault(known[alias].model_id, []).append(alias)
        self._of = {model_id: tuple(aliases) for model_id, aliases in of.items()}
