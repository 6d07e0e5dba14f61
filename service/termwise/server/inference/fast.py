"""The fast path: a model's weights in packed networks, checked against the plain path."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.base import Side
from termwise.server.inference.computing import refuse_device, refuse_precision
from termwise.server.inference.hardware import has_bfloat16, may_have_cuda, set_compute_threads
from termwise.server.inference.networks import has_int8, make_networks
from termwise.server.inference.parity import Judge
from termwise.server.inference.plain import plain_weights
from termwise.server.inference.splade import SpladeEncoder
from termwise.server.inference.weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from termwise.server.inference.artefacts import ModelFolder
    from termwise.server.inference.base import ExpansionConfig
    from termwise.server.inference.computing import Computing
    from termwise.server.inference.extraction import Weighing
    from termwise.server.inference.networks import Network
    from termwise.server.inference.text import TextTokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Original:
    """A model whose weights do not come from its folder's safetensors, or that plain transformers does not run.

    `read` gives the weights in float32, by the names of the architecture; `answer` what the model itself answers, as
    `parity.Judge` wants it, which computes in `precision`.
    """

    read: Callable[[], Mapping[str, NDArray[np.float32]]]
    answer: Callable[[Sequence[Sequence[int]]], list[NDArray[np.float32]]]
    precision: str = "float32"


def load_fast(
    opened: ModelFolder,
    config: ExpansionConfig,
    tokenizer: TextTokenizer,
    fingerprints: dict[Side, str],
    computing: Computing,
    weighing: Weighing,
    original: Original | None = None,
) -> SpladeEncoder:
    """Load a model of a known architecture into the best network that runs here and answers as the plain path does.

    `original` is what is given by the folder's files and plain transformers where it is None.

    Raises:
        FailedPreconditionError: see `loader.load_encoder`.

    """
    make, able, where = _choose_device(computing)
    choices = [computing.precision]
    if computing.precision == "auto":
        choices = ["bfloat16", "float32"] if "bfloat16" in able else ["float32"]
    elif computing.precision not in able:
        raise refuse_precision(f"{where} does not compute in {computing.precision}", "PRECISION_UNSUPPORTED")
    plain = original or Original(partial(read_weights, opened), partial(plain_weights, opened.path))
    weights = plain.read()
    set_compute_threads(computing.threads)
    judge = Judge(tokenizer, fingerprints[Side.DOCUMENT], computing.cache, plain.answer, plain.precision)
    refusal: str | None = None
    failure: Exception | None = None
    for choice, maker in ((each, maker) for each in choices for maker in make(opened, weights, each)):
        try:
            network = maker()
            encoder = SpladeEncoder(config, tokenizer, fingerprints, network, choice, weighing)
            problem = judge.compare(encoder)
        except (RuntimeError, MemoryError) as error:
            # A product that this processor or build of torch lacks, or memory: the next network may do without.
            _log.warning("encoder in %s does not run here", choice, exc_info=error)
            failure = error
            continue
        if problem is None:
            _log.info("encoder in %s by %s", choice, network.kernel)
            return encoder
        _log.warning("encoder in %s by %s is refused: %s", choice, network.kernel, problem)
        refusal = problem
    if refusal is None and failure is not None:
        raise does_not_run(choices[-1], failure) from failure
    if choices[-1] != "float32":
        why = f"this model's vectors in it differ too much from the exact ones ({refusal})"
        raise refuse_precision(why, "PARITY_FAILED")
    raise FailedPreconditionError(
        f"The model's vectors differ from those of plain transformers ({refusal}).",
        reason="PARITY_FAILED",
        metadata={"architecture": opened.architecture.name},
    ) from failure


def does_not_run(precision: str, error: Exception) -> FailedPreconditionError:
    """Make the error for a model that no network computes, from what the last one raised."""
    # torch has no type for the processor's memory, and one that is a RuntimeError for a device's.
    if isinstance(error, MemoryError) or "allocate" in str(error) or "out of memory" in str(error):
        return FailedPreconditionError(
            "The model does not run here: out of memory; free some, or use a smaller model.",
            reason="MODEL_DOES_NOT_RUN",
        )
    why = f"the model does not run in {precision} here ({type(error).__name__}); the server's log says more"
    if precision != "float32":
        return refuse_precision(why, "MODEL_DOES_NOT_RUN")
    return FailedPreconditionError(f"{why[0].upper()}{why[1:]}.", reason="MODEL_DOES_NOT_RUN")


def _choose_device(computing: Computing) -> tuple[Callable[..., Iterable[Callable[[], Network]]], set[str], str]:
    """Give what makes networks on a device, the precisions that they compute in there, and the device in words."""
    cuda = None
    if computing.device != "cpu" and may_have_cuda():
        from termwise.server.inference import device as devices  # noqa: PLC0415 - imports torch

        cuda = devices.cuda_device()
    if cuda is None:
        if computing.device == "cuda":
            raise refuse_device("There is no CUDA device that torch can use; set auto or cpu.")
        able = {"float32"} | ({"bfloat16"} if has_bfloat16() else set()) | ({"int8"} if has_int8() else set())
        return partial(make_networks, cache=computing.cache), able, "this processor"

    def make(
        folder: ModelFolder, weights: Mapping[str, NDArray[np.float32]], precision: str
    ) -> list[Callable[[], Network]]:
        return [lambda: devices.DeviceNetwork(folder, weights, precision, cuda)]

    return make, {"float32"} | ({"bfloat16"} if devices.cuda_has_bfloat16() else set()), "this CUDA device"
