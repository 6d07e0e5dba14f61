"""A model on a CUDA device: the packed layers and the pooled head in plain torch operations.

Nothing here is of CUDA alone: the same operations run on the processor, where they are tested, only slower than what is
made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from termwise.server.inference.architectures import ACTIVATIONS
from termwise.server.inference.body import (
    DTYPES,
    Norm,
    attend_inside,
    layers_dtype,
    make_layers,
    position_table,
    relative_bias,
)
from termwise.server.inference.linear import PlainLinear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from termwise.server.inference.artefacts import ModelFolder

# Columns of a chunk of the head: with 16,384 tokens in bfloat16 its logits take 128 MiB.
_CHUNK = 4096
# Texts whose lengths differ by no more than a quarter, or so many tokens, share one attention, with padding.
_SLACK = 1.25
_SLACK_TOKENS = 8


def cuda_device() -> torch.device | None:
    """Give the CUDA device there is; None where there is none."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def cuda_has_bfloat16() -> bool:
    """Tell whether the CUDA device computes in bfloat16 itself."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbours of like lengths: `count` texts, padded to `longest` tokens.

    `rows` `[count * longest]` are the packed rows that fill the padded ones, `valid` the padded rows that are no
    padding, in packed order, and `mask` `[count, 1, 1, longest]` is 0 for them and minus infinity for padding; both are
    None where nothing is padded.
    """

    start: int
    end: int
    count: int
    longest: int
    rows: Tensor
    valid: Tensor | None
    mask: Tensor | None


def _attend(mixed: Tensor, span: _Span, heads: int, bias: Tensor | None) -> Tensor:
    """Attend inside each text of a span; padding is masked, and left out of what comes back."""
    padded = mixed[span.start : span.end] if span.valid is None else mixed[span.rows]
    mask = span.mask.to(mixed.dtype) if span.mask is not None else None
    if bias is not None:
        own = bias[None, :, : span.longest, : span.longest]
        mask = own if mask is None else own + mask
    rows = attend_inside(padded, span.count, heads, mask)
    return rows if span.valid is None else rows[span.valid]


class DeviceNetwork:
    """A model on a device. Thread-safe; the device takes what threads give it one after the other."""

    engine = "torch"

    def __init__(
        self,
        folder: ModelFolder,
        weights: Mapping[str, NDArray[np.float32]],
        precision: str,
        device: torch.device,
    ) -> None:
        """Put the weights there; `weights` are the model's in float32, by today's names."""
        architecture, dimensions = folder.architecture, folder.dimensions
        dtype, body_dtype = DTYPES[precision], layers_dtype(dimensions, precision)

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(weights[name]).to(device)

        def both(name: str) -> tuple[Tensor, Tensor]:
            return tensor(f"{name}.weight"), tensor(f"{name}.bias")

        self._device, self._dtype, self._body_dtype = device, dtype, body_dtype
        self._offset, self._vocabulary = dimensions.position_offset, dimensions.vocabulary
        names, head = architecture.embeddings, architecture.head
        with torch.inference_mode():
            self._words = tensor(f"{names['word']}.weight")
            self._positions = position_table(tensor, architecture)
            self._norm = Norm(*both(names["norm"]), dimensions.epsilon, torch.float32)
            self._project = PlainLinear(*both(names["project"]), body_dtype) if dimensions.projects else None
            self._bias: Tensor | None = None
            if dimensions.relative_buckets:
                table = tensor(f"{names['relative']}.weight")
                self._bias = relative_bias(table, dimensions.longest).to(body_dtype)
            self._layers = make_layers(tensor, architecture, dimensions, body_dtype, PlainLinear, _attend)
            activation = ACTIVATIONS[dimensions.head_activation]
            self._transform = PlainLinear(*both(head["transform"]), body_dtype, activation)
            self._head_norm = Norm(*both(head["norm"]), dimensions.epsilon, body_dtype)
            decoder = names["word"] if dimensions.tied else head["decoder"]
            self._decoder = tensor(f"{decoder}.weight").to(dtype)
            self._decoder_bias = tensor(folder.bias).to(dtype)

    @property
    def place(self) -> str:
        """The kind of the device, such as "cuda"."""
        return self._device.type

    @property
    def kernel(self) -> str:
        """What computes: the device's name."""
        if self._device.type == "cuda":
            return f"torch on {torch.cuda.get_device_name(self._device)}"
        return f"torch, generic, on {self._device.type}"

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Give the largest logits `[texts, vocabulary]`; see `networks.Network.pool`."""
        with torch.inference_mode():
            largest: NDArray[np.float32] = self._largest(texts).cpu().numpy()
        return largest

    def positive(self, texts: Sequence[Sequence[int]]) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Give, for each text, the ids whose largest logit is positive, ascending, and those logits.

        Only they leave the device: a hundredth of the vocabulary.
        """
        with torch.inference_mode():
            largest = self._largest(texts)
            rows, columns = (largest > 0).nonzero(as_tuple=True)
            counts = torch.bincount(rows, minlength=len(texts)).cpu().tolist()
            ids, logits = columns.cpu().numpy(), largest[rows, columns].cpu().numpy()
        ends = np.cumsum(counts)
        return [(ids[end - count : end], logits[end - count : end]) for count, end in zip(counts, ends, strict=True)]

    def _largest(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Run the model: `[texts, vocabulary]` in float32, on the device."""
        lengths = [len(ids) for ids in texts]
        ids = np.fromiter((number for text in texts for number in text), np.int64, sum(lengths))
        places = np.concatenate([self._place(text) for text in texts])
        spans = [self._span(first, last, lengths) for first, last in plan_spans(lengths)]
        packed, positions = torch.from_numpy(np.stack([ids, places])).to(self._device)
        embedded = F.embedding(packed, self._words) + F.embedding(positions, self._positions)
        x = self._norm(embedded).to(self._body_dtype)
        if self._project is not None:
            x = self._project(x)
        for layer in self._layers:
            x = layer(x, spans, self._bias)
        x = self._head_norm(self._transform(x)).to(self._dtype)
        largest = torch.empty(len(texts), self._vocabulary, dtype=torch.float32, device=self._device)
        segments = torch.tensor(lengths, device=self._device)
        # "unsafe" leaves out a check of the lengths that would wait for the device at each chunk.
        for start in range(0, self._vocabulary, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            logits = F.linear(x, self._decoder[chunk], self._decoder_bias[chunk])
            largest[:, chunk] = torch.segment_reduce(logits.float(), "max", lengths=segments, axis=0, unsafe=True)
        return largest

    def _place(self, text: Sequence[int]) -> NDArray[np.int64]:
        """Give the positions of a text's tokens; a spelt-out padding token is not counted (see `Dimensions`)."""
        padding = self._offset - 1
        if not self._offset or padding not in text:
            return np.arange(self._offset, self._offset + len(text), dtype=np.int64)
        counted = np.fromiter((number != padding for number in text), np.int64, len(text))
        return counted.cumsum() * counted + padding

    def _span(self, first: int, last: int, lengths: Sequence[int]) -> _Span:
        """Lay texts `first` to `last` out for attention."""
        start, own = sum(lengths[:first]), np.array(lengths[first:last])
        count, longest = len(own), int(own[-1])
        end = start + int(own.sum())
        if own[0] == longest:
            return _Span(start, end, count, longest, torch.empty(0), None, None)
        inside = np.arange(longest)[None, :] < own[:, None]
        starts = start + np.concatenate([[0], own[:-1].cumsum()])
        # Padding repeats a text's last token; it is masked.
        rows = starts[:, None] + np.minimum(np.arange(longest)[None, :], own[:, None] - 1)
        mask = np.where(inside, np.float32(0), np.float32(-np.inf))[:, None, None, :]
        put = [torch.from_numpy(each).to(self._device) for each in (rows.ravel(), np.flatnonzero(inside), mask)]
        return _Span(start, end, count, longest, *put)


def plan_spans(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut sorted lengths into runs that are padded together: each from its first text to the one after its last."""
    spans: list[tuple[int, int]] = []
    first = 0
    for place, length in enumerate(lengths):
        if length > max(lengths[first] * _SLACK, lengths[first] + _SLACK_TOKENS):
            spans.append((first, place))
            first = place
    return [*spans, (first, len(lengths))]
