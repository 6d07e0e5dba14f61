"""The check at load: a fast encoder must answer as the model's plain path does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from termwise.server.inference.base import Side
from termwise.server.inference.hardware import processor_name, torch_version
from termwise.server.inference.native.library import library_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from termwise.server.inference.splade import SpladeEncoder
    from termwise.server.inference.text import TextTokenizer

# Changes when the check does, so that old verdicts are not believed.
_VERSION = 2
# Sentences of different lengths, 3 to about 270 tokens: the head takes another way above 64.
SENTENCES = (
    "Pluto",
    "How do I squeeze a file so that it takes less room on the disk?",
    "The committee met on 14 March 1977; its report (no. 12/B) named three causes: rust, salt & neglect. ",
    "Salmon are farmed in floating net pens along sheltered coasts, where the tide renews the water twice a day. " * 12,
)
# Smallest cosine and largest difference of a weight that each precision may show. Measured with the default model on
# all texts of four collections: .99996 and .027 in bfloat16, which cost no NDCG@10; .9994 and .108 in int8, which cost
# at most .0004 (`make bench-drift`); .9999999 and .0000045 in float32.
_LIMITS = {"float32": (0.99999, 0.001), "bfloat16": (0.998, 0.25), "int8": (0.99, 0.5)}


class Judge:
    """Compares encoders of one model with its plain path; the verdicts are kept by what could change them."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        fingerprint: str,
        cache: Path | None,
        reference: Callable[[Sequence[Sequence[int]]], list[NDArray[np.float32]]],
        precision: str = "float32",
    ) -> None:
        """Keep verdicts under `cache`, where it is given.

        `reference` gives the weights `[vocabulary]` of each of the texts that it is called with: vocabulary ids,
        special ones included, sorted by length. It is called at most once, and not where a verdict is kept. It
        computes in `precision`: nobody comes nearer to an answer in int8 than that is to the exact one.
        """
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self._cache = cache
        self._reference = reference
        self._loosest = _LIMITS[precision]
        self._expected: list[NDArray[np.float32]] | None = None

    def compare(self, encoder: SpladeEncoder) -> str | None:
        """Say how an encoder differs from the plain path; None where it does not. Raises what `reference` raises."""
        kept = self._kept(encoder)
        if kept is not None and kept.exists():
            try:
                verdict: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
                problem = verdict["problem"]
            except (OSError, ValueError, KeyError):
                kept.unlink(missing_ok=True)
            else:
                return str(problem) if problem else None
        problem = self._measure(encoder)
        if kept is not None:
            _write(kept, {"problem": problem, "precision": encoder.precision, "torch": torch_version()})
        return problem

    def _measure(self, encoder: SpladeEncoder) -> str | None:
        # Cut to the model's length, also where the configuration would refuse a text as long.
        cut = self._tokenizer.tokenize(SENTENCES, Side.DOCUMENT, truncate=True)
        texts = sorted((text.ids for text in cut), key=len)
        if self._expected is None:
            self._expected = self._reference(texts)
        least_cosine = min(_LIMITS[encoder.precision][0], self._loosest[0])
        most_difference = max(_LIMITS[encoder.precision][1], self._loosest[1])
        for ids, logits, expected in zip(texts, encoder.pool(texts), self._expected, strict=True):
            actual = np.log1p(np.maximum(logits, 0))
            cosine = _cosine(actual, expected)
            difference = float(np.abs(actual - expected).max())
            # Written so that a NaN fails too.
            if not (cosine >= least_cosine and difference <= most_difference):
                return (
                    f"{encoder.precision}, {len(ids)} tokens: cosine {cosine:.6f}, largest difference {difference:.4f}"
                )
        return None

    def _kept(self, encoder: SpladeEncoder) -> Path | None:
        if self._cache is None:
            return None
        computes = [encoder.precision, encoder.kernel, torch_version(), library_digest()]
        key = json.dumps([_VERSION, self._fingerprint, processor_name(), *computes])
        return self._cache / "parity" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0:
        return 1.0 if not left.any() and not right.any() else 0.0
    return float(left @ right) / norms


def _write(file: Path, value: dict[str, Any]) -> None:
    """Write a file whole or not at all: two deployments may start at once.

    A verdict that cannot be kept (a full disk) is no reason to fail: the next load checks again.
    """
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            made = Path(scratch) / file.name
            made.write_text(json.dumps(value), encoding="utf-8")
            made.replace(file)
