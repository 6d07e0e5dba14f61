"""A TorchScript model that runs: loaded, checked once more, and asked for the weights of one text at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from termwise.server.inference.torchscript.graphs import check_graph
from termwise.server.inference.torchscript.refusals import unusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from termwise.server.inference.torchscript.metadata import PackageMetadata

# input_ids, attention_mask, token_type_ids, position_ids: what ml-cpp gives a BERT. Other kinds get the first two.
_BERT_ARGUMENTS: Final = 4
_ARGUMENTS: Final = 2
_MOST_DIMENSIONS: Final = 3
# Fewest tokens of a text in a probe: a row a token must differ from one row.
_PROBE_TOKENS: Final = 5
# Whoever asks the process's random generator has it alone, from the same state each time.
_CHANCE: Final = threading.Lock()


class Program:
    """A loaded model, as a `networks.Network`. Thread-safe; a text has the same weights whenever it is asked for.

    What it answers is one row of weights, or one row a token. Of several rows the largest values count, as SPLADE
    pools them; where there are negative ones among them they are logits, and become weights by `log1p(relu(…))`.
    """

    engine = "torchscript"
    kernel = "torchscript"
    place = "cpu"

    def __init__(self, file: str, package: PackageMetadata, vocabulary_size: int, max_tokens: int) -> None:
        """Load the copy of an archive (see `copying`), and try it on texts of several lengths.

        Raises:
            FailedPreconditionError: torch cannot load it, it uses what it may not, it does not run on such texts, or
                its answer is not one weight a token of the vocabulary.

        """
        self._vocabulary_size = vocabulary_size
        try:
            module: Any = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
            self._forward = module.eval().forward
            schema = self._forward.schema
            graph = module.inlined_graph
        except Exception as error:  # torch raises of all kinds
            raise unusable("torch does not load its archive; export the model again") from error
        self._chance = check_graph(graph)
        self._count = _count_arguments(schema, package)
        self._pooled = True
        self._logits = package.expansion_type == "splade"
        self._probe(package, max_tokens)

    def weights(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Give the weights `[vocabulary]` of a text's ids, special ones included; those not positive mean nothing."""
        rows = self._rows(ids)
        largest: NDArray[np.float32] = rows[0] if self._pooled else rows.max(axis=0)
        if self._logits and not self._pooled:
            largest = np.log1p(np.maximum(largest, 0))
        return largest

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the weights `[texts, vocabulary]`; here they are not logits any more."""
        return np.stack([self.weights(ids) for ids in texts])

    def _probe(self, package: PackageMetadata, max_tokens: int) -> None:
        """Find out what the answer is."""
        short = [number % self._vocabulary_size for number in range(min(_PROBE_TOKENS, max_tokens))]
        whole = (short * max_tokens)[:max_tokens]
        try:
            # A copy: the answer may be a tensor that the model keeps.
            first = self._rows(short).copy()
            self._pooled = len(first) == 1
            for ids in (short, whole):
                rows = self._rows(ids)
                if len(rows) != (1 if self._pooled else len(ids)):
                    raise unusable(f"it answers {len(ids)} tokens with {len(rows)} rows instead of one, or one a token")
                if not np.isfinite(rows).all():
                    raise unusable("it answers with what is not a number")
                if not self._pooled and not package.expansion_type:
                    self._logits = self._logits or bool((rows < 0).any())
            again = self._rows(short)
        except RuntimeError as error:
            raise unusable(f"it does not run on {len(short)} to {max_tokens} tokens ({_shown(error)})") from error
        if not np.array_equal(first, again):
            raise unusable("it gives another answer each time; export it in evaluation mode, by model.eval()")

    def _rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Run the model on one text; gives `[rows, vocabulary]`."""
        length = len(ids)
        given = torch.zeros(_BERT_ARGUMENTS, 1, length, dtype=torch.int64)
        given[0, 0] = torch.tensor(ids)
        given[1] = 1
        given[3, 0] = torch.arange(length)
        arguments = given[: self._count].unbind(0)
        with torch.inference_mode():
            if self._chance:
                with _CHANCE:
                    torch.manual_seed(0)
                    answer = self._forward(*arguments)
            else:
                answer = self._forward(*arguments)
        return self._as_rows(answer)

    def _as_rows(self, answer: Any) -> NDArray[np.float32]:
        if isinstance(answer, tuple | list) and answer:
            answer = answer[0]
        if not isinstance(answer, torch.Tensor) or answer.dtype not in {torch.float32, torch.float64}:
            raise unusable("it answers with something else than a tensor of float32 or float64")
        shape = list(answer.shape)
        if not 1 <= len(shape) <= _MOST_DIMENSIONS or (len(shape) == _MOST_DIMENSIONS and shape[0] != 1):
            raise unusable(f"it answers with the shape {shape} instead of [1, {self._vocabulary_size}]")
        if shape[-1] != self._vocabulary_size or 0 in shape:
            raise unusable(
                f"it answers with the shape {shape}, and its vocabulary file has {self._vocabulary_size} tokens"
            )
        rows: NDArray[np.float32] = answer.detach().reshape(-1, shape[-1]).to(torch.float32).numpy()
        return rows


def _count_arguments(schema: Any, package: PackageMetadata) -> int:
    wanted = _BERT_ARGUMENTS if package.tokenization.kind == "bert" else _ARGUMENTS
    # Its own object comes first.
    names = [each.name for each in schema.arguments][1:]
    needed = [each.name for each in schema.arguments if not each.has_default_value()][1:]
    if len(needed) > wanted or len(names) < wanted:
        raise unusable(
            f"its forward takes {len(names)} arguments ({', '.join(names)[:80]}), and one with a"
            f" {package.tokenization.kind} tokenizer is given {wanted}"
        )
    return wanted


def _shown(error: Exception) -> str:
    """Give the last line of what torch says, which is the reason."""
    return ascii(str(error).strip().rsplit("\n", 1)[-1][:120])
