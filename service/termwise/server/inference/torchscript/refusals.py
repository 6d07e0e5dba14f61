"""The errors for archives that cannot be used."""

from __future__ import annotations

from termwise.server.errors import FailedPreconditionError


def unsafe(problem: str) -> FailedPreconditionError:
    """Make the error for an archive that is not loaded because of what it holds; `problem` lacks its full stop."""
    return FailedPreconditionError(f"The model's TorchScript is not loaded: {problem}.", reason="TORCHSCRIPT_UNSAFE")


def unusable(problem: str) -> FailedPreconditionError:
    """Make the error for a package that is broken or does not do what a sparse encoder does."""
    return FailedPreconditionError(f"The model's package cannot be used: {problem}.", reason="MODEL_UNUSABLE")


def is_pickle() -> FailedPreconditionError:
    """Make the error for a pickle that stands where TorchScript should."""
    return FailedPreconditionError(
        "The model is a pickle, which can run code when it is read, and not TorchScript; convert it where it was made,"
        " by torch.jit.trace(model, inputs).save(file), or to safetensors by model.save_pretrained(folder).",
        reason="MODEL_IS_PICKLE",
    )
