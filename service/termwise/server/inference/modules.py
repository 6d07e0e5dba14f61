"""What a model's folder is made of: which network or table encodes each side, and how.

Three layouts are told apart: a plain transformers folder; a folder of sentence-transformers' SparseEncoder, whose
modules.json lists its parts; and OpenSearch's doc-only models, a transformers folder with an idf.json beside it, whose
queries are looked up there. Nothing here needs torch.
"""

from __future__ import annotations

import ast
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from termwise.server.inference.architectures import packed_architecture
from termwise.server.inference.artefacts import ModelFolder, open_packed, read_config
from termwise.server.inference.base import ExpansionConfig, Side
from termwise.server.inference.files import label, read_any_json, read_json, unusable
from termwise.server.inference.plain_folder import PlainFolder, open_plain
from termwise.server.inference.static import StaticFolder, open_static

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODULES: Final = "modules.json"
_IDF: Final = "idf.json"
_OWN_NAMESPACE: Final = "sentence_transformers."
_NETWORKS: Final = frozenset({"Transformer", "MLMTransformer"})
_TABLES: Final = frozenset({"SparseStaticEmbedding", "IDF"})
_ROUTERS: Final = frozenset({"Router", "Asym"})
_POOLING: Final = "SpladePooling"
# The names that sentence-transformers has given the settings of a Transformer over time.
_NETWORK_SETTINGS: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_STRATEGIES: Final = ("max", "sum")
_ACTIVATIONS: Final = ("relu", "log1p_relu")
# The heading of OpenSearch's doc-only models that apply log1p twice, which their idf.json alone does not say.
_TWICE: Final = "# opensearch-neural-sparse-encoding-doc-v3"
# Most characters of a route's key.
_LONGEST_KEY: Final = 200
_README_CHARACTERS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the logits of a text's tokens become weights.

    `strategy`: "max" or "sum" over the tokens; `activation`: "relu" for `log1p(relu(x))`, "log1p_relu" for
    `log1p(log1p(relu(x)))`; `muted`: special tokens get no weight.
    """

    strategy: str = "max"
    activation: str = "relu"
    muted: bool = False


@dataclass(frozen=True, slots=True)
class NetworkPart:
    """A network under a masked-token head, and its pooling."""

    folder: ModelFolder | PlainFolder
    pooling: Pooling

    @property
    def size_bytes(self) -> int:
        """Size of the files that are read."""
        return self.folder.size_bytes


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model's folder: what encodes each side; the very same part where one encodes both.

    `prompts` are the prefixes, and `max_terms` the limit of terms, that the folder itself states; `layout` is one of
    `ModelFacts`.
    """

    layout: str
    document: NetworkPart | StaticFolder
    query: NetworkPart | StaticFolder
    document_prompt: str = ""
    query_prompt: str = ""
    max_terms: int = 0

    def part(self, side: Side) -> NetworkPart | StaticFolder:
        """Give what encodes a side."""
        return self.document if side is Side.DOCUMENT else self.query

    @property
    def parts(self) -> list[NetworkPart | StaticFolder]:
        """The distinct parts."""
        return [self.document] if self.query is self.document else [self.document, self.query]

    def complete(self, config: ExpansionConfig) -> ExpansionConfig:
        """Fill what a configuration leaves open with what the folder states."""
        return replace(
            config,
            document_prefix=config.document_prefix or self.document_prompt,
            query_prefix=config.query_prefix or self.query_prompt,
            document_max_terms=config.document_max_terms or self.max_terms,
            query_max_terms=config.query_max_terms or self.max_terms,
        )


def open_model(path: Path) -> OpenedModel:
    """Read what a model's folder says of itself, and check that its files are there and fit together.

    Raises:
        FailedPreconditionError: a file is missing or broken, weights are a pickle, or the model needs what is not
            supported; the message is one sentence that names it.

    """
    if not path.is_dir():
        raise unusable("its folder does not exist; download it again")
    if (path / _MODULES).is_file():
        return _open_modules(path)
    if (path / _IDF).is_file():
        _refuse_unsaid_activation(path)
        return OpenedModel(
            "doc_only", NetworkPart(open_network(path), Pooling(muted=True)), open_static(path, path, idf=path / _IDF)
        )
    part = NetworkPart(open_network(path), Pooling())
    return OpenedModel("transformers", part, part)


def open_network(path: Path) -> ModelFolder | PlainFolder:
    """Open a folder for the fast path where that knows the architecture, and for transformers itself elsewhere."""
    config = read_config(path)
    architecture = packed_architecture(config)
    return open_plain(path, config) if architecture is None else open_packed(path, config, architecture)


def _refuse_unsaid_activation(path: Path) -> None:
    readme = path / "README.md"
    if readme.is_file():
        with readme.open(encoding="utf-8", errors="replace") as stream:
            start = stream.read(_README_CHARACTERS)
        if any(line.startswith(_TWICE) for line in start.splitlines()):
            raise unusable(
                "it is one of OpenSearch's v3, which apply log1p twice, and modules.json, which says so, is missing; "
                "download the model's repository as a whole"
            )


# --- sentence-transformers


@dataclass(frozen=True, slots=True)
class _Module:
    """A module's class, without its package, and its folder."""

    kind: str
    folder: Path


def _open_modules(root: Path) -> OpenedModel:
    chains = _read_chains(root)
    parts = {chain: _open_chain(chain, root) for chain in set(chains.values())}
    document, query = parts[chains[Side.DOCUMENT]], parts[chains[Side.QUERY]]
    settings = root / "config_sentence_transformers.json"
    stated = read_json(settings) if settings.is_file() else {}
    prompts = stated.get("prompts") or {}
    terms = stated.get("max_active_dims") or 0
    if not isinstance(prompts, dict) or isinstance(terms, bool) or not isinstance(terms, int) or terms < 0:
        raise unusable(f"{settings.name} is broken; download it again")
    # sentence-transformers always has prompts of these names, so that others ("passage") never serve.
    document_prompt, query_prompt = (str(prompts.get(name) or "") for name in ("document", "query"))
    return OpenedModel("sparse_encoder", document, query, document_prompt, query_prompt, terms)


def _read_chains(root: Path) -> dict[Side, tuple[_Module, ...]]:
    """Give the modules that a text of each side goes through, in order."""
    listed = read_any_json(root / _MODULES)
    if not isinstance(listed, list) or not listed:
        raise unusable("modules.json does not list modules; download it again")
    chains: dict[Side, tuple[_Module, ...]] = dict.fromkeys(Side, ())
    for entry in listed:
        if not isinstance(entry, dict):
            raise unusable("modules.json does not list modules; download it again")
        module = _module(entry.get("type"), entry.get("path"), root, _MODULES)
        for side in Side:
            chains[side] += _route(module, side, root) if module.kind in _ROUTERS else (module,)
    return chains


def _module(kind: Any, name: Any, folder: Path, source: str) -> _Module:
    """Read a module's class and folder, as the file `source` has them."""
    if not isinstance(kind, str) or not isinstance(name, str):
        raise unusable(f"{source} is broken; download it again")
    if not kind.startswith(_OWN_NAMESPACE):
        raise unusable(f"its module {kind} is code that comes with the model, which is never run")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise unusable(f'{source} names the folder "{name}", which is outside of the model')
    return _Module(kind.rpartition(".")[2], Path(folder, *path.parts))


def _route(router: _Module, side: Side, root: Path) -> tuple[_Module, ...]:
    """Give the modules by which a router encodes a side; sentence-transformers' rule for a text of that task."""
    file = router.folder / "router_config.json"
    if not file.is_file() and router.folder != root:
        file = router.folder / "config.json"  # as it was called first
    stated = read_json(file, root)
    source = label(file, root)
    types, structure = stated.get("types"), stated.get("structure")
    parameters = stated.get("parameters") or {}
    if not isinstance(types, dict) or not isinstance(structure, dict) or not isinstance(parameters, dict):
        raise unusable(f"{source} is broken; download it again")
    route = _route_name(side.value, structure, parameters.get("route_mappings") or {})
    names = structure.get(route)
    if not isinstance(names, list):
        raise unusable(f"{source} has no route for a {side.value}; its routes are {', '.join(map(str, structure))}")
    return tuple(_module(types.get(name), name, router.folder, source) for name in names)


def _route_name(task: str, structure: Mapping[str, Any], mappings: Any) -> str:
    named: dict[Any, str] = {}
    for key, route in mappings.items() if isinstance(mappings, dict) else ():
        # What is no pair of names is passed over, as sentence-transformers does.
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            named[ast.literal_eval(key[:_LONGEST_KEY])] = str(route)
    for key in ((task, "text"), (task, None), (None, "text"), (None, None)):
        if key in named:
            return named[key]
    return task if task in structure else "text"


def _open_chain(chain: tuple[_Module, ...], root: Path) -> NetworkPart | StaticFolder:
    kinds = [module.kind for module in chain]
    if len(chain) == 1 and kinds[0] in _TABLES:
        _check_there(chain[0], root)
        return open_static(chain[0].folder, root)
    if len(chain) == len(("network", "pooling")) and kinds[0] in _NETWORKS and kinds[1] == _POOLING:
        return NetworkPart(_open_transformer(chain[0], root), _read_pooling(chain[1].folder, root))
    wanted = "a Transformer with SpladePooling, or a SparseStaticEmbedding"
    raise unusable(f"its modules ({', '.join(kinds) or 'none'}) are not those of a sparse encoder: {wanted}")


def _open_transformer(module: _Module, root: Path) -> ModelFolder | PlainFolder:
    """Open a network with what sentence-transformers' own settings add to it."""
    _check_there(module, root)
    file = next((each for name in _NETWORK_SETTINGS if (each := module.folder / name).is_file()), None)
    stated = {} if file is None else read_json(file, root)
    task = stated.get("transformer_task", "fill-mask" if module.kind == "MLMTransformer" else "feature-extraction")
    if task != "fill-mask":
        raise unusable(
            f'its module {module.kind} gives no logits of tokens (its task is "{task}"), which pooling needs'
        )
    opened = open_network(module.folder)
    longest = stated.get("max_seq_length")
    for key, value in _calls(stated):
        if key == "max_length":
            longest = value
        elif key not in {"truncation", "padding", "return_tensors"}:
            name = label(file or module.folder, root)
            raise unusable(f'{name} calls the tokenizer with "{key}", which is not supported')
    settings = opened.tokenizer_config
    if isinstance(longest, int) and not isinstance(longest, bool):
        settings = settings | {"model_max_length": longest}
    return replace(opened, tokenizer_config=settings, lowercase=stated.get("do_lower_case") is True)


def _check_there(module: _Module, root: Path) -> None:
    if not module.folder.is_dir():
        raise unusable(f"its folder {label(module.folder, root)} is missing; download the model as a whole")


def _calls(stated: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Give the arguments that a tokenizer is called with, where the settings of a Transformer have any."""
    calls = stated.get("processing_kwargs") or {}
    groups = (calls.get("common"), calls.get("text")) if isinstance(calls, dict) else ()
    return [item for group in groups if isinstance(group, dict) for item in group.items()]


def _read_pooling(folder: Path, root: Path) -> Pooling:
    file = folder / "config.json"
    stated = read_json(file, root) if file.is_file() else {}
    pooling = Pooling(stated.get("pooling_strategy", "max"), stated.get("activation_function", "relu"))
    if pooling.strategy not in _STRATEGIES or pooling.activation not in _ACTIVATIONS:
        raise unusable(
            f'its pooling ("{pooling.strategy}" of "{pooling.activation}") is not supported; strategies are '
            f"{', '.join(_STRATEGIES)}, activations {', '.join(_ACTIVATIONS)}"
        )
    return pooling
