"""The plain path: a model as transformers itself runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from termwise.server.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from termwise.server.inference.artefacts import ModelFolder


def plain_weights(folder: ModelFolder, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Give the weights `[vocabulary]` of texts by plain transformers, text by text, in float32.

    Raises:
        FailedPreconditionError: transformers cannot load the model.

    """
    import torch  # noqa: PLC0415 - slow to import
    from transformers import AutoModelForMaskedLM  # noqa: PLC0415 - seconds to import, needed once a model
    from transformers.utils import logging  # noqa: PLC0415

    # It would draw a progress bar into the log.
    logging.disable_progress_bar()

    try:
        model = AutoModelForMaskedLM.from_pretrained(
            folder.path, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
    except Exception as error:  # whatever it is, the model cannot be checked
        raise FailedPreconditionError(
            "The model cannot be used: transformers does not load it, so that it cannot be checked.",
            reason="MODEL_UNUSABLE",
        ) from error
    weights = []
    with torch.inference_mode():
        for ids in texts:
            logits = model(input_ids=torch.tensor([list(ids)])).logits[0]
            weights.append(torch.log1p(torch.relu(logits.amax(0))).numpy())
    return weights
