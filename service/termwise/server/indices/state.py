"""What the catalogue gives: settings, open indices, and what start-up found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from termwise.server.indices.mapping import Mapping
    from termwise.server.metadata.records import IndexRecord
    from termwise.storage.base import SparseIndex


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """The settings of an index; empty strings mean the defaults."""

    default_pipeline: str = ""
    storage: str = ""


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An index that can be written and searched, as it is at the moment of `open`."""

    record: IndexRecord
    mapping: Mapping
    index: SparseIndex
    fingerprints: dict[str, str]

    @property
    def default_pipeline(self) -> str:
        """Pipeline of writes that name none; empty for none."""
        return str(self.record.settings.get("default_pipeline", ""))


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What start-up found and did; names of indices, and of storage for the last two.

    `rolled_back` were half made, `finished` half deleted, `lost` lived in memory; all these are gone. `broken` ones
    cannot be opened, by name with the reason; deleting them works. `dropped` is storage that belonged to no index, and
    is gone; `strays` is the same where metadata knows no index at all, and stays: the metadata may have been lost.
    """

    ready: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
