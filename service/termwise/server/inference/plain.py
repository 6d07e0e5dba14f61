"""The plain path: a model as transformers itself loads and runs it."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any, Final

from termwise.server.errors import FailedPreconditionError
from termwise.server.inference.files import find_weights, read_shapes, unusable
from termwise.server.inference.importing import import_transformers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)


# While it builds a model, transformers changes torch for all threads.
_BUILDING: Final = threading.Lock()


def load_model(path: Path) -> Any:
    """Load a folder's model by transformers, in float32, one at a time; code that comes with it is never run.

    Raises:
        FailedPreconditionError: transformers cannot load it, or would make up weights that its files lack.

    """
    with _BUILDING:
        return _build(path)


def _build(path: Path) -> Any:
    import torch  # noqa: PLC0415 - slow to import

    transformers = import_transformers()
    # It would draw a progress bar into the log, and warn of what is checked here.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        # A configuration may name an implementation that would be fetched.
        config._attn_implementation = None  # noqa: SLF001 - what from_pretrained itself sets
        _check_parameters(path, config)
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except FailedPreconditionError:
        raise
    except Exception as error:  # whatever it is, the model cannot be run
        _log.warning("transformers does not load the model", exc_info=error)
        # torch has no type for the processor's memory.
        if isinstance(error, MemoryError) or "allocate" in str(error):
            raise FailedPreconditionError(
                "The model does not run here: out of memory; free some, or use a smaller model.",
                reason="MODEL_DOES_NOT_RUN",
            ) from error
        raise FailedPreconditionError(
            f"The model cannot be used: transformers does not load it ({type(error).__name__}); the server's log says "
            "more.",
            reason="MODEL_UNUSABLE",
        ) from error
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise unusable(f'its weights lack the tensor "{missing[0]}"')
    return model.eval()


def _check_parameters(path: Path, config: Any) -> None:
    """Refuse a configuration of far more parameters than are stored: transformers would make the others up."""
    import torch  # noqa: PLC0415

    with torch.device("meta"):
        shell = import_transformers().AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    needed = sum(tensor.numel() for tensor in shell.parameters())
    stored = sum(math.prod(shape) for file in find_weights(path) for shape in read_shapes(file).values())
    if needed > 2 * stored:
        raise unusable(f"config.json describes a model of {needed} parameters, and its files hold {stored}")


def plain_weights(
    path: Path, texts: Sequence[Sequence[int]], *, summed_logarithms: int = 0
) -> list[NDArray[np.float32]]:
    """Give the weights `[vocabulary]` of texts by plain transformers, text by text, in float32.

    `summed_logarithms` 0: the largest logit counts. Above: `log1p(relu(x))`, so many logarithms of it, are summed over
    the tokens, and the sum is the logit.

    Raises:
        FailedPreconditionError: transformers cannot load the model.

    """
    return run_model(load_model(path), texts, summed_logarithms)


def run_model(model: Any, texts: Sequence[Sequence[int]], summed_logarithms: int = 0) -> list[NDArray[np.float32]]:
    """Do the same by a model that is loaded."""
    import torch  # noqa: PLC0415 - slow to import

    weights = []
    with torch.inference_mode():
        for ids in texts:
            logits = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0].float().relu_()
            for _ in range(summed_logarithms):
                logits = logits.log1p_()
            pooled = logits.sum(0) if summed_logarithms else logits.amax(0)
            weights.append(pooled.log1p().cpu().numpy())
    return weights
