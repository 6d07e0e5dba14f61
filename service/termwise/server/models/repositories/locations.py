"""Where a source's files are, by name: nothing that a package or an index names leads out of the source's folder."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from termwise.server.errors import FailedPreconditionError, invalid_field

METADATA_END: Final = ".metadata.json"
"""Ends the name of a package's metadata file."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEEPEST: Final = 3
_FORM: Final = (
    "A source on a web server is https://host/folder/ or https://host/folder/<package>.metadata.json (or http://), "
    "without user name, query and fragment."
)
_FILE_ENDS: Final = (".json", ".safetensors", ".pt", ".bin", ".zip", ".whl", ".gz", ".tar")


def check_web(uri: str) -> None:
    """Refuse what is no URL of a folder or of a package's metadata on a web server.

    Raises:
        InvalidArgumentError: it is none; the message shows nothing of it.

    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise invalid_field("source_uri", _FORM) from None
    good = (
        uri.startswith(f"{parts.scheme}://")
        and uri.isascii()
        and uri.isprintable()
        and not set(' "<>\\^`{|}?#') & set(uri)
        and bool(re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", parts.netloc))
        and bool(parts.hostname)
        and port != 0
        and not {".", ".."} & set(unquote(parts.path).split("/"))
        and not {"\\", "\0"} & set(unquote(parts.path))
    )
    last = parts.path.rpartition("/")[2]
    if not good or (last.endswith(_FILE_ENDS) and not is_package(uri)):
        raise invalid_field("source_uri", _FORM)


def is_package(uri: str) -> bool:
    """Tell whether a URI names a package's metadata file, and not a folder."""
    return uri.endswith(METADATA_END) and not uri.endswith(f"/{METADATA_END}")


def folder_of(uri: str) -> str:
    """Give the URL of the folder that a source is, or that its metadata file lies in, with a slash at its end."""
    return uri.rpartition("/")[0] + "/" if is_package(uri) else uri.rstrip("/") + "/"


def below(base: str, name: str) -> str:
    """Give the URL of a file of a folder by its relative name. `base` ends with a slash.

    Raises:
        FailedPreconditionError: the name leads out of the folder, or is none.

    """
    check_name(name)
    return base + "/".join(quote(part, safe="") for part in name.split("/"))


def check_name(name: str) -> None:
    """Refuse a relative name that leads out of its folder, lies deep, or is none.

    Raises:
        FailedPreconditionError: it does; it is named.

    """
    parts = name.split("/")
    good = len(parts) <= _DEEPEST and name.isprintable() and "\\" not in name and len(name) <= 255 * _DEEPEST
    if not good or any(not part or part.startswith(".") for part in parts):
        raise FailedPreconditionError(
            f"{name[:100]!r} is no name of a file in the source's folder; it would lead out of it.",
            reason="SOURCE_UNUSABLE",
        )


def archive_name(packaged_model_id: str) -> str:
    """Give the name of a package's archive.

    Raises:
        FailedPreconditionError: the package's id is no plain name.

    """
    if _PLAIN.fullmatch(packaged_model_id) is None:
        raise FailedPreconditionError(
            f"The package's metadata give it the id {packaged_model_id[:100]!r}, which is no plain name.",
            reason="PACKAGE_UNUSABLE",
        )
    return f"{packaged_model_id}.pt"


def package_of(model_id: str) -> str | None:
    """Give the id of a packaged model's package, such as elser_model_1 of .elser_model_1; None where it has none."""
    name = model_id.removeprefix(".")
    return name if model_id.startswith(".") and _PLAIN.fullmatch(name) else None
