"""The files of a model's folder: JSON, weights by their headers, and what is said of those that will not do."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from pathlib import Path

# Names under which weights come as pickles, which run code when they are opened and are never read here.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Most bytes of a JSON file that is read here; a configuration has a few thousand, a table of idf a million.
_LARGEST_JSON = 64 * 1024 * 1024


def unusable(problem: str) -> FailedPreconditionError:
    """Make the error for a model that cannot be used. `problem` follows a colon and lacks its full stop."""
    return FailedPreconditionError(f"The model cannot be used: {problem}.", reason="MODEL_UNUSABLE")


def label(file: Path, root: Path) -> str:
    """Name a file as seen from the model's folder."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def read_json(file: Path, root: Path | None = None) -> dict[str, Any]:
    """Read a JSON object; errors name the file, as seen from `root` where it is given."""
    value = read_any_json(file, root)
    if not isinstance(value, dict):
        raise unusable(f"{label(file, root or file.parent)} does not hold a JSON object; download it again")
    return value


def read_any_json(file: Path, root: Path | None = None) -> Any:
    """Read a JSON file, whatever it holds."""
    name = label(file, root or file.parent)
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise unusable(f"{name} is larger than {_LARGEST_JSON >> 20} MiB")
        return parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise unusable(f"{name} is missing; add it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unusable(f"{name} is not readable JSON; download it again") from error


def parse_json(raw: str | bytes) -> Any:
    """Parse JSON whose strings are all Unicode: half a letter, which an escape can write, no answer could ever show.

    Raises:
        ValueError: it is not that.
        RecursionError: it is nested too deep.

    """
    text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    value = json.loads(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def find_weights(path: Path) -> tuple[Path, ...]:
    """Give a folder's safetensors files, one or several that an index names."""
    whole = path / "model.safetensors"
    if whole.is_file():
        return (whole,)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        # A shard lies beside its index; a path that leaves the folder is not one.
        if not names or any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
            raise unusable("model.safetensors.index.json does not name the files of the weights")
        for name in names:
            if not (path / name).is_file():
                raise unusable(f"{name} is missing, which model.safetensors.index.json names")
        return tuple(path / name for name in names)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise FailedPreconditionError(
            f"The model's weights are a pickle ({pickles[0]}), which is never read; convert them to model.safetensors "
            "by loading the model with transformers and calling save_pretrained(folder).",
            reason="MODEL_IS_PICKLE",
            metadata={"file": pickles[0]},
        )
    raise unusable("model.safetensors is missing; add it")


def find_tokenizer(path: Path, vocabulary_files: tuple[str, ...]) -> tuple[Path, ...]:
    """Give a folder's tokenizer.json, or else the files of the vocabulary, where they are enough to make one of."""
    for names in (("tokenizer.json",), vocabulary_files):
        files = tuple(path / name for name in names)
        if files and all(file.is_file() for file in files):
            return files
    if vocabulary_files:
        raise unusable(f"tokenizer.json is missing, and {' and '.join(vocabulary_files)} too; add one of them")
    raise unusable(
        "tokenizer.json is missing; make it by loading the tokenizer with transformers and calling "
        "save_pretrained(folder)"
    )


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of a safetensors file's tensors from its header."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - not a need of the client's install

    try:
        # The frame of reference is NumPy's, so that a look at the header does not import torch.
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise unusable(f"{file.name} is not a safetensors file or is incomplete; download it again") from error


def file_digest(file: Path) -> str:
    """Give the SHA-256 of a file in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def total_size(files: set[Path]) -> int:
    """Give the bytes of those files that are there."""
    return sum(file.stat().st_size for file in files if file.exists())
