"""A model in transformers' own classes, as a network: texts of one length at a time, logits never whole."""

from __future__ import annotations

import logging
from functools import partial
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import Side
from termwise.server.inference.computing import refuse_device, refuse_precision
from termwise.server.inference.device import cuda_device, cuda_has_bfloat16
from termwise.server.inference.fast import does_not_run
from termwise.server.inference.hardware import set_compute_threads, torch_has_bfloat16
from termwise.server.inference.parity import Judge
from termwise.server.inference.plain import load_model, plain_weights, run_model
from termwise.server.inference.splade import SpladeEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.computing import Computing
    from termwise.server.inference.extraction import Weighing
    from termwise.server.inference.text import TextTokenizer

_log = logging.getLogger(__name__)

# Bytes of the logits that are there at a time.
_LOGITS_BYTES: Final = 64 * 1024 * 1024
# The same where a model's head cannot be cut, and only one text is there.
_WHOLE_LOGITS_BYTES: Final = 2 * 1024 * 1024 * 1024
_LEAST_CHUNK: Final = 256
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _PooledDecoder(torch.nn.Module):
    """A model's last product, pooled as it is made: `[texts, tokens, hidden]` to `[texts, 1, vocabulary]`.

    What the model adds to logits behind it is added to the largest ones just as well. Where a model does anything else
    there, the check at load sees it.
    """

    def __init__(self, decoder: torch.nn.Linear, summed_logarithms: int) -> None:
        super().__init__()
        self.inner = decoder
        self.pooled = True
        self._logarithms = summed_logarithms

    def forward(self, x: Tensor) -> Tensor:
        if not self.pooled:
            logits: Tensor = self.inner(x)
            return logits
        weight, bias = self.inner.weight, self.inner.bias
        rows = x.shape[0] * x.shape[1]
        step = max(_LEAST_CHUNK, _LOGITS_BYTES // (4 * rows))
        pooled = x.new_empty(x.shape[0], 1, weight.shape[0])
        for start in range(0, weight.shape[0], step):
            part = slice(start, start + step)
            logits = F.linear(x, weight[part], None if bias is None else bias[part])
            pooled[:, 0, part] = _pool(logits, self._logarithms)
        return pooled


def _pool(logits: Tensor, summed_logarithms: int) -> Tensor:
    """Pool `[texts, tokens, vocabulary]` over the tokens; changes `logits`."""
    if not summed_logarithms:
        return logits.amax(1)
    logits = logits.relu_()
    for _ in range(summed_logarithms):
        logits = logits.log1p_()
    return logits.sum(1)


class PlainNetwork:
    """A model of transformers. Thread-safe."""

    engine = "transformers"

    def __init__(
        self,
        model: Any,
        vocabulary: int,
        *,
        summed_logarithms: int = 0,
        cut: bool = True,
        precision: str = "float32",
        device: torch.device | None = None,
    ) -> None:
        """Prepare a loaded model, which is changed.

        Args:
            model: what `plain.load_model` gives.
            vocabulary: tokens that it gives logits for.
            summed_logarithms: see `plain.plain_weights`.
            cut: compute the head in chunks of the vocabulary.
            precision: "float32" or "bfloat16".
            device: None: the processor.

        Raises:
            RuntimeError: the head cannot be cut.

        """
        self._device = device or torch.device("cpu")
        self._vocabulary = vocabulary
        self._logarithms = summed_logarithms
        self._cut = cut
        self._decoder = _replace_decoder(model, vocabulary, summed_logarithms) if cut else None
        self._model = model.to(self._device, _DTYPES[precision])

    @property
    def place(self) -> str:
        """Where it computes."""
        return self._device.type

    @property
    def kernel(self) -> str:
        """What computes: transformers, and whether the head is cut."""
        return f"transformers {version('transformers')}, {'cut' if self._cut else 'whole'}, on {self.place}"

    def run_whole(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Do as `plain.plain_weights` does, with logits as transformers makes them. Not beside other calls."""
        if self._decoder is not None:
            self._decoder.pooled = False
        try:
            return run_model(self._model, texts, self._logarithms)
        finally:
            if self._decoder is not None:
                self._decoder.pooled = True

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits, or what is summed of them; see `networks.Network.pool`."""
        pooled = np.empty((len(texts), self._vocabulary), dtype=np.float32)
        with torch.inference_mode():
            for start, batch in self._batches(texts):
                ids = torch.tensor([list(text) for text in batch], device=self._device)
                logits = self._model(input_ids=ids).logits
                reduced = logits[:, 0] if self._cut else _pool(logits, self._logarithms)
                pooled[start : start + len(batch)] = reduced.float().cpu().numpy()
        return pooled

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[Sequence[int]]]]:
        """Cut texts into runs of one length, which need neither padding nor a mask, and of bounded logits."""
        start = 0
        for length, run in groupby(texts, key=len):
            same = list(run)
            most = len(same) if self._cut else max(1, _LOGITS_BYTES // (4 * length * self._vocabulary))
            for first in range(0, len(same), most):
                yield start + first, same[first : first + most]
            start += len(same)


def _replace_decoder(model: Any, vocabulary: int, summed_logarithms: int) -> _PooledDecoder:
    decoder = model.get_output_embeddings()
    if isinstance(decoder, torch.nn.Linear) and decoder.out_features == vocabulary:
        for module in model.modules():
            for name, child in module.named_children():
                if child is decoder:
                    pooled = _PooledDecoder(decoder, summed_logarithms)
                    setattr(module, name, pooled)
                    return pooled
    message = "there is no last product that could be cut"
    raise RuntimeError(message)


def load_plain(
    path: Path,
    config: ExpansionConfig,
    tokenizer: TextTokenizer,
    fingerprints: dict[Side, str],
    computing: Computing,
    weighing: Weighing,
    summed_logarithms: int = 0,
) -> SpladeEncoder:
    """Load a model that transformers itself runs.

    It is checked once against transformers without our head, and with a text of its greatest length; the verdict is
    kept.

    Raises:
        FailedPreconditionError: see `loader.load_encoder`.

    """
    device, precision = _choose(computing)
    set_compute_threads(computing.threads)
    vocabulary = len(tokenizer.vocabulary)

    def reference(texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        # Whether it has positions for a text of its greatest length shows here, not when somebody sends one.
        network.pool([[texts[-1][place % len(texts[-1])] for place in range(tokenizer.max_tokens)]])
        if precision == "float32":
            return network.run_whole(texts)
        return plain_weights(path, texts, summed_logarithms=summed_logarithms)

    judge = Judge(tokenizer, fingerprints[Side.DOCUMENT], computing.cache, reference)
    make = partial(
        PlainNetwork, vocabulary=vocabulary, summed_logarithms=summed_logarithms, precision=precision, device=device
    )
    problem: str | None = None
    for cut in (True, False):
        if not cut and 4 * tokenizer.max_tokens * vocabulary > _WHOLE_LOGITS_BYTES:
            raise FailedPreconditionError(
                f"The model's logits of a text of {tokenizer.max_tokens} tokens are over "
                f"{_WHOLE_LOGITS_BYTES >> 30} GiB; set a smaller max_tokens.",
                reason="MODEL_DOES_NOT_RUN",
            )
        try:
            network = make(load_model(path), cut=cut)
            encoder = SpladeEncoder(config, tokenizer, fingerprints, network, precision, weighing)
            problem = judge.compare(encoder)
        except FailedPreconditionError:
            raise
        except Exception as error:  # a model may need what it is not given, or more memory than there is
            if cut:
                _log.info("the head is not computed in parts: %s", error)
                continue
            _log.warning("plain encoder does not run here", exc_info=error)
            raise does_not_run(precision, error) from error
        if problem is None:
            _log.info("encoder in %s by %s: there is no faster path for it", precision, network.kernel)
            return encoder
        _log.warning("encoder in %s by %s is refused: %s", precision, network.kernel, problem)
    if precision != "float32":
        why = f"this model's vectors in it differ too much from the exact ones ({problem})"
        raise refuse_precision(why, "PARITY_FAILED")
    raise FailedPreconditionError(
        f"The model does not give the same vectors twice ({problem}); it cannot be served.", reason="PARITY_FAILED"
    )


def _choose(computing: Computing) -> tuple[torch.device | None, str]:
    """Give the device (None: the processor) and the precision."""
    device = cuda_device() if computing.device != "cpu" else None
    if device is None and computing.device == "cuda":
        raise refuse_device("There is no CUDA device that torch can use; set auto or cpu.")
    precision = "float32" if computing.precision == "auto" else computing.precision
    if precision == "bfloat16" and not (torch_has_bfloat16() if device is None else cuda_has_bfloat16()):
        where = "this processor" if device is None else "this CUDA device"
        raise refuse_precision(f"{where} does not compute in bfloat16", "PRECISION_UNSUPPORTED")
    if precision not in _DTYPES:
        raise refuse_precision(
            f"a model that plain transformers runs does not compute in {precision}", "PRECISION_UNSUPPORTED"
        )
    return device, precision
