"""Inner loops that make tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from termwise.storage.tantivy.compiling import compile_kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _invert(
    tokens: NDArray[np.int32],
    weights: NDArray[np.float32],
    lengths: NDArray[np.int64],
    places: NDArray[np.int64],
    docs_out: NDArray[np.uint16],
    weights_out: NDArray[np.float32],
) -> None:
    at = 0
    for doc in range(len(lengths)):
        for _ in range(lengths[doc]):
            token = tokens[at]
            place = places[token]
            places[token] = place + 1
            docs_out[place] = doc
            weights_out[place] = weights[at]
            at += 1


def _measure(
    starts: NDArray[np.uint32],
    weights: NDArray[np.float32],
    maxima: NDArray[np.float32],
    minima: NDArray[np.float32],
) -> None:
    for token in range(len(maxima)):
        greatest: Any = weights[starts[token]]
        least: Any = greatest
        for at in range(starts[token], starts[token + 1]):
            greatest = max(greatest, weights[at])
            least = min(least, weights[at])
        maxima[token] = greatest
        minima[token] = least


def _count_live(
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    moved: NDArray[np.int32],
    homes: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    for token in range(len(homes)):
        count = 0
        for at in range(starts[token], starts[token + 1]):
            count += moved[docs[at]] >= 0
        counts[homes[token]] += count


def _append(
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    moved: NDArray[np.int32],
    homes: NDArray[np.int64],
    places: NDArray[np.int64],
    docs_out: NDArray[np.uint16],
    weights_out: NDArray[np.float32],
) -> None:
    for token in range(len(homes)):
        place = places[homes[token]]
        for at in range(starts[token], starts[token + 1]):
            doc = moved[docs[at]]
            if doc >= 0:
                docs_out[place] = doc
                weights_out[place] = weights[at]
                place += 1
        places[homes[token]] = place


def _cut(starts: NDArray[np.uint32], docs: NDArray[np.uint16], block: int, cuts: NDArray[np.uint32]) -> None:
    for token in range(len(cuts)):
        at = np.int64(starts[token])
        for place in range(cuts.shape[1]):
            while at < starts[token + 1] and docs[at] < place * block:
                at += 1
            cuts[token, place] = at


def _quantise(
    starts: NDArray[np.uint32],
    docs: NDArray[np.uint16],
    weights: NDArray[np.float32],
    maxima: NDArray[np.float32],
    rows: NDArray[np.uint8],
) -> None:
    for token in range(len(rows)):
        factor = 255.0 / np.float64(maxima[token])
        for at in range(starts[token], starts[token + 1]):
            level: Any = np.int64(np.ceil(factor * weights[at]))
            rows[token, docs[at]] = max(1, min(255, level))


def _read(kind: str) -> str:
    return f"Array({kind},1,'C',readonly=True)"


_U2, _U4, _I4, _I8, _F4 = (_read(kind) for kind in ("uint16", "uint32", "int32", "int64", "float32"))
"""Arrays that are read alone may be views of files; writable ones pass as well."""

invert: Final = compile_kernel(f"void({_I4},{_F4},{_I8},i8[::1],u2[::1],f4[::1])", _invert)
"""Sort the weights of documents by token: a counting sort.

`tokens` and `weights` hold the vectors one after another, `lengths[doc]` of them each. `places[token]`, changed here,
is where the token's postings begin in `docs_out` and `weights_out`.
"""

measure: Final = compile_kernel(f"void({_U4},{_F4},f4[::1],f4[::1])", _measure)
"""Find the greatest and the least weight of each token."""

count_live: Final = compile_kernel(f"void({_U4},{_U2},{_I4},{_I8},i8[::1])", _count_live)
"""Add each token's documents that stay to `counts[homes[token]]`; `moved[doc]` is -1 for those that do not."""

append: Final = compile_kernel(f"void({_U4},{_U2},{_F4},{_I4},{_I8},i8[::1],u2[::1],f4[::1])", _append)
"""Write each token's postings to where `places[homes[token]]` says, and move that on.

`moved[doc]` is the document's new place, -1 where it is dropped.
"""

cut: Final = compile_kernel(f"void({_U4},{_U2},i8,u4[:,::1])", _cut)
"""Find where each block of documents begins in the postings of the first tokens, as many as `cuts` has rows."""

quantise: Final = compile_kernel(f"void({_U4},{_U2},{_F4},{_F4},u1[:,::1])", _quantise)
"""Write the weights of the first tokens into dense rows of zeros, in 255ths of the token's maximum, rounded up."""
