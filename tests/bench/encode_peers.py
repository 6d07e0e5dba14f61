"""What a user would take instead of our encoder: sentence-transformers, ONNX Runtime and OpenVINO on the same weights.

Each peer is a callable, texts to sparse vectors, on one thread. ONNX Runtime and OpenVINO run one graph: the model,
the maximum over a text's tokens, ReLU and log1p, so that no logits leave the runtime; a batch is padded to its longest
text, and what is above zero is picked out of the answer by numpy.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenizers import Tokenizer

MAX_TOKENS = 512
Vectors = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    """An engine at a precision: its sides as callables, texts in and sparse vectors out."""

    engine: str
    precision: str
    query: Callable[[list[str]], Any]
    document: Callable[[list[str]], Any]


class Pooled(torch.nn.Module):
    """A masked-token model and SPLADE's pooling, as one graph."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Give weights `[texts, vocabulary]`."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        largest = logits.masked_fill(attention_mask.unsqueeze(-1) == 0, 0.0).amax(1)
        return torch.log1p(torch.relu(largest))


class Runtime:
    """Texts to sparse vectors through a graph that takes token ids and their mask."""

    def __init__(self, tokenizer: Tokenizer, run: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self.tokenizer = tokenizer
        self.run = run

    def __call__(self, texts: list[str]) -> Vectors:
        """Encode."""
        encoded = self.tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in encoded], np.int64)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        weights = self.run(ids, mask)
        found = [np.flatnonzero(row) for row in weights]
        return [(places, row[places]) for places, row in zip(found, weights, strict=True)]


def load_peers(model: Path, scratch: Path) -> list[Peer]:
    """Load every peer that is installed; one that cannot be had is named in a warning."""
    peers = [sentence_transformers(model)]
    tokenizer = load_tokenizer(model)
    graph = load_graph(model)
    for load in (onnx_runtime, openvino):
        try:
            peers += load(graph, tokenizer, scratch)
        except ImportError as error:
            warnings.warn(f"{load.__name__} is left out: {error}", stacklevel=1)
    return peers


def sentence_transformers(model: Path) -> Peer:
    """Load the reference, as its manual says for SPLADE."""
    from sentence_transformers import SparseEncoder  # noqa: PLC0415 - seconds to import
    from sentence_transformers.sparse_encoder import modules  # noqa: PLC0415

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    body = modules.MLMTransformer(str(model))
    encoder = SparseEncoder(modules=[body, modules.SpladePooling(pooling_strategy="max")], device="cpu")
    encoder.max_seq_length = MAX_TOKENS
    return Peer("sentence-transformers", "float32", encoder.encode_query, encoder.encode_document)


def onnx_runtime(graph: Pooled, tokenizer: Tokenizer, scratch: Path) -> list[Peer]:
    """Export to ONNX; run it as it is, and with its own dynamic int8 weights."""
    import onnx  # noqa: F401, PLC0415 - torch's exporter needs it
    import onnxruntime  # noqa: PLC0415 - bench-only
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    exported = scratch / "model.onnx"
    axes = {0: "texts", 1: "tokens"}
    torch.onnx.export(
        graph,
        example(),
        exported,
        input_names=["input_ids", "attention_mask"],
        output_names=["weights"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        verbose=False,
    )
    files = {"float32": exported}
    try:
        files["int8"] = scratch / "model-int8.onnx"
        quantize_dynamic(exported, files["int8"], weight_type=QuantType.QInt8, per_channel=True)
    except Exception as error:  # noqa: BLE001 - its quantiser fails in many ways, none of them ours
        warnings.warn(f"ONNX Runtime's int8 is left out: {error}", stacklevel=1)
        del files["int8"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    peers = []
    for precision, file in files.items():
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def run(ids: np.ndarray, mask: np.ndarray, session: Any = session) -> np.ndarray:
            return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

        encode = Runtime(tokenizer, run)
        peers.append(Peer("onnxruntime", precision, encode, encode))
    return peers


def openvino(graph: Pooled, tokenizer: Tokenizer, scratch: Path) -> list[Peer]:
    """Convert from torch, compile for latency at float32, and at bfloat16 where the processor has it."""
    import openvino as ov  # noqa: PLC0415 - bench-only

    del scratch
    core = ov.Core()
    converted = ov.convert_model(graph, example_input=example())
    hints = {"float32": "f32"}
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hints["bfloat16"] = "bf16"
    peers = []
    for precision, hint in hints.items():
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(converted, "CPU", settings).create_infer_request()

        def run(ids: np.ndarray, mask: np.ndarray, request: Any = request) -> np.ndarray:
            return request.infer((ids, mask), share_inputs=True, share_outputs=True)[0]

        encode = Runtime(tokenizer, run)
        peers.append(Peer("openvino", precision, encode, encode))
    return peers


def load_graph(model: Path) -> Pooled:
    """Load the model by plain transformers."""
    from transformers import AutoModelForMaskedLM  # noqa: PLC0415 - seconds to import

    return Pooled(AutoModelForMaskedLM.from_pretrained(model, attn_implementation="sdpa")).eval()


def load_tokenizer(model: Path) -> Tokenizer:
    """Load the tokenizer, set to pad a batch to its longest text."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

    tokenizer = AutoTokenizer.from_pretrained(model).backend_tokenizer
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Give inputs to trace with: two texts, one of them padded."""
    ids = torch.arange(5, 37).reshape(2, 16)
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    return ids, mask
