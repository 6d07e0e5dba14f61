"""Finds storage backends by name through the `termwise.storage` entry points."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final, cast

from termwise.storage.errors import BackendMissingError

if TYPE_CHECKING:
    from termwise.storage.base import Backend

GROUP: Final = "termwise.storage"
"""The entry-point group. Its names are the backends' names; its values name a `Backend`."""

_INSTALL_HINTS: Final = {"memory": "server", "tantivy": "server"}
"""The extra of the termwise package that brings a backend's dependencies."""

_SHIPPED: Final = {
    "memory": "termwise.storage.memory:MemoryStore",
    "tantivy": "termwise.storage.tantivy.store:TantivyStore",
}
"""Backends of this package, so that a source tree without installed metadata has them too."""


def backend_names() -> list[str]:
    """Name the known backends, sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUP)} | set(_SHIPPED))


def find_backend(name: str) -> Backend:
    """Import the backend of that name.

    Raises:
        BackendMissingError: no such backend is known, or a package that it needs is not installed.

    """
    value = next((entry.value for entry in entry_points(group=GROUP, name=name)), _SHIPPED.get(name))
    if value is None:
        known = ", ".join(f'"{known}"' for known in backend_names())
        msg = (
            f'Storage backend "{name}" is not known; use one of {known}, '
            f'or install a package that brings a "{GROUP}" entry point of that name.'
        )
        raise BackendMissingError(msg)
    module, _, attribute = value.partition(":")
    try:
        return cast("Backend", getattr(import_module(module), attribute))
    except ImportError as error:
        extra = _INSTALL_HINTS.get(name)
        hint = f'pip install "termwise[{extra}]"' if extra else f"install the package that brings {module}"
        msg = f'Storage backend "{name}" needs a package that is not installed ({error}); {hint}.'
        raise BackendMissingError(msg) from error
