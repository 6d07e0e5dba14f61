"""Which files a model's folder on a web server has: web servers list no folders, so known names are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import TermwiseError
from termwise.server.inference.files import parse_json
from termwise.server.models import artifacts
from termwise.server.models.repositories.answers import is_absent, shown
from termwise.server.models.repositories.locations import below, check_name

if TYPE_CHECKING:
    from termwise.server.models.repositories.web import Session

_MODULES: Final = "modules.json"
_ROUTER: Final = "router_config.json"
_NAMES: Final = (
    "config.json",
    artifacts.WEIGHTS,
    artifacts.SHARDS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "idf.json",
    "sentence_bert_config.json",
    _ROUTER,
)
"""In a model's folder, and in that of a module of sentence-transformers."""
_TOP_NAMES: Final = (_MODULES, "config_sentence_transformers.json")
_MOST_FOLDERS: Final = 16
_MOST_SHARDS: Final = 1_000
_LIMIT_BYTES: Final = 32 << 20


def find(session: Session, base: str) -> dict[str, int | None]:
    """Give the sizes of the files that are there (None: the server does not say), by their relative names.

    Raises:
        UnavailableError: the server cannot be reached.
        FailedPreconditionError: it denies them, or a file that names others is broken or names what cannot be.

    """
    found: dict[str, int | None] = {}
    folders = [""]
    for place, folder in enumerate(folders):
        if place >= _MOST_FOLDERS:
            raise artifacts.unusable(f"{shown(base)} has more than {_MOST_FOLDERS} folders of modules")
        for name in (*_NAMES, *(() if folder else _TOP_NAMES)):
            _look(session, base, folder + name, found)
        for shard in _shards(session, base, folder, found):
            if not _look(session, base, shard, found):
                raise artifacts.unusable(f"{shown(base)} lacks {shard}, which {folder}{artifacts.SHARDS} names")
        folders += [each for each in _modules(session, base, folder, found) if each not in folders]
    return found


def _look(session: Session, base: str, name: str, found: dict[str, int | None]) -> bool:
    try:
        found[name] = session.probe(below(base, name)).size
    except TermwiseError as error:
        if not is_absent(error):
            raise
        return False
    return True


def _shards(session: Session, base: str, folder: str, found: dict[str, int | None]) -> list[str]:
    name = folder + artifacts.SHARDS
    if name not in found:
        return []
    index = _read(session, base, name)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(each, str) for each in names.values()):
        raise artifacts.unusable(f"{name} of {shown(base)} has no weight_map of names")
    shards = sorted({folder + each for each in names.values()})
    if len(shards) > _MOST_SHARDS:
        raise artifacts.unusable(f"{name} of {shown(base)} names more than {_MOST_SHARDS:,} files")
    return shards


def _modules(session: Session, base: str, folder: str, found: dict[str, int | None]) -> list[str]:
    """Give the folders of the modules that a folder's files name."""
    named: list[Any] = []
    if folder + _MODULES in found:
        modules = _read(session, base, _MODULES)
        if not isinstance(modules, list) or not all(isinstance(each, dict) for each in modules):
            raise artifacts.unusable(f"{_MODULES} of {shown(base)} is no list of modules")
        named += [each.get("path", "") for each in modules]
    if folder + _ROUTER in found:
        router = _read(session, base, folder + _ROUTER)
        types = router.get("types") if isinstance(router, dict) else None
        named += [folder + str(each) for each in types] if isinstance(types, dict) else []
    for each in named:
        if each:
            check_name(str(each))
    return [f"{each}/" for each in named if each]


def _read(session: Session, base: str, name: str) -> Any:
    raw = session.read(below(base, name), _LIMIT_BYTES, f"{name} of {shown(base)}")
    try:
        return parse_json(raw)
    except (ValueError, RecursionError):
        raise artifacts.unusable(f"{name} of {shown(base)} is no JSON") from None
