"""The kernel against slow and obvious arithmetic."""

from __future__ import annotations

import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import mtrand

from termwise.server.inference.artefacts import open_folder
from termwise.server.inference.base import Encoder, ExpansionConfig, Side
from termwise.server.inference.findings import remember
from termwise.server.inference.hardware import compute_threads, has_bfloat16, set_compute_threads
from termwise.server.inference.loader import load_encoder
from termwise.server.inference.native import library
from termwise.server.inference.native.layout import Kind, Matrix, RowsStructure, aligned, to_bfloat16
from termwise.server.inference.native.library import Level, best_level, levels
from termwise.server.inference.native.network import team_size
from termwise.server.inference.networks import fastest_first, make_networks
from termwise.server.inference.torch_network import TorchNetwork
from termwise.server.inference.weights import read_weights
from termwise.server.settings import KERNEL, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

LEVELS = [(level, kind) for level in levels() for kind in sorted(level.kinds)]
NAMES = [f"{level.name}-{kind.name}" for level, kind in LEVELS]

needs_kernel = pytest.mark.skipif(not LEVELS, reason="the kernel was not compiled, or not for this processor")


def pooled(
    level: Level, matrix: Matrix, rows: NDArray[np.float32], lengths: list[int], cut: int = 0
) -> NDArray[np.float32]:
    """Pool by the kernel; the panels up to `cut` and those from there on, one after another."""
    units = np.full((len(rows), matrix.units), 0xDEADBEEF, dtype=np.uint32)
    scale = np.empty(len(rows), dtype=np.float32)
    level.cast(rows.ctypes.data, matrix.inputs, len(rows), matrix.structure, units.ctypes.data, scale.ctypes.data)
    packed = RowsStructure(units.ctypes.data, scale.ctypes.data, matrix.units)
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    out = np.full((len(lengths), matrix.outputs), np.nan, dtype=np.float32)
    cut = min(cut, matrix.panels)
    for first, last in ((0, cut), (cut, matrix.panels)):
        address = starts.ctypes.data
        level.pool(matrix.structure, packed, address, len(lengths), first, last, out.ctypes.data, matrix.outputs)
    return out


def rounded(values: NDArray[np.float32], kind: Kind) -> NDArray[np.float64]:
    """Give the numbers that the kernel multiplies in place of `values`, row by row."""
    if kind is Kind.BFLOAT16:
        return (to_bfloat16(values).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if kind is Kind.INT8:
        scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        return np.rint(values / np.where(scale > 0, scale, 1)).astype(np.float64) * scale
    return values.astype(np.float64)


@needs_kernel
@pytest.mark.parametrize(("level", "kind"), LEVELS, ids=NAMES)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 140)),
    cut=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
    shift=st.sampled_from([0.0, -100.0]),
    coarse=st.booleans(),
)
def test_pooling_is_a_product_and_its_maximum(
    level: Level,
    kind: Kind,
    lengths: list[int],
    shape: tuple[int, int],
    cut: int,
    seed: int,
    shift: float,
    coarse: bool,
) -> None:
    random = np.random.default_rng(seed)
    outputs, inputs = shape
    rows = random.normal(size=(sum(lengths), inputs)).astype(np.float32)
    weight = random.normal(size=(outputs, inputs)).astype(np.float32)
    if coarse:  # many ties, rows of zeros
        rows, weight = np.rint(rows), np.rint(weight)
    bias = (random.normal(size=outputs) + shift).astype(np.float32)
    logits = rounded(rows, kind) @ rounded(weight, kind).T
    starts = np.cumsum([0, *lengths[:-1]])
    expected = np.maximum.reduceat(logits, starts, axis=0) + bias
    actual = pooled(level, Matrix(weight, bias, kind, level.panel), rows, lengths, cut)
    # INT8: a number half way between two may go either way.
    loose = 0.02 * inputs**0.5 if kind is Kind.INT8 else 0
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * inputs**0.5 + loose)


@needs_kernel
@pytest.mark.parametrize(("level", "kind"), LEVELS, ids=NAMES)
def test_nan_loses_and_infinity_wins(level: Level, kind: Kind) -> None:
    if kind is Kind.INT8:
        pytest.skip("there is neither in int8")
    rows = np.ones((3, 2), dtype=np.float32)
    rows[1, 0] = np.nan
    rows[2, 0] = np.inf
    matrix = Matrix(np.array([[1, 1], [-1, 1]], dtype=np.float32), np.zeros(2, dtype=np.float32), kind, level.panel)
    np.testing.assert_array_equal(pooled(level, matrix, rows[:2].copy(), [2]), [[2, 0]])
    np.testing.assert_array_equal(pooled(level, matrix, rows, [3]), [[np.inf, 0]])


@given(st.lists(st.floats(width=32), min_size=1, max_size=30))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    import torch  # noqa: PLC0415

    numbers = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(numbers).to(torch.bfloat16).float().numpy()
    actual = (to_bfloat16(numbers).astype(np.uint32) << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(actual, expected)


def test_aligned_memory_begins_on_a_cache_line() -> None:
    for size in range(1, 40):
        copy = aligned(np.arange(size, dtype=np.float32).reshape(1, size).T)
        assert copy.ctypes.data % 64 == 0
        assert copy.ravel().tolist() == list(range(size))


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"hidden_act": "relu", "tie_word_embeddings": False}),
    ("bert", {"hidden_act": "gelu_new"}),
    # Odd heads, widths that fill no vector.
    ("bert", {"hidden_size": 15, "num_attention_heads": 3, "intermediate_size": 21}),
    ("bert", {"hidden_size": 144, "num_attention_heads": 2, "intermediate_size": 150}),
    ("bert", {"hidden_size": 150, "num_attention_heads": 6, "intermediate_size": 149}),
    # Bfloat16 layers whose rows fill no whole number of units.
    ("bert", {"hidden_size": 135, "num_attention_heads": 3}),
    ("bert", {"hidden_size": 129, "num_attention_heads": 1}),
    ("distilbert", {}),
    ("roberta", {}),
    ("roberta", {"pad_token_id": 5}),
    ("mpnet", {"hidden_size": 160}),
    ("mpnet", {}),
    ("electra", {"embedding_size": 20}),
]
# How far logits of about 10 may lie from those of float32.
FAR = {"float32": 2e-4, "bfloat16": 0.5, "int8": 2.5}


@needs_kernel
@pytest.mark.parametrize("level", levels(), ids=lambda level: level.name)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("architecture", "changes"), SHAPES)
def test_every_architecture_computes_as_torch_does(
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    level: Level,
    precision: str,
    architecture: str,
    changes: dict[str, Any],
) -> None:
    if Kind[precision.upper()] not in level.kinds:
        pytest.skip(f"{level.name} has no {precision}")
    monkeypatch.setenv(KERNEL, level.name)
    folder = open_folder(make_model(architecture, initializer_range=0.1, **changes))
    weights = read_weights(folder)
    network: Any = next(iter(make_networks(folder, weights, precision)))()
    assert network.kernel.startswith(level.name)
    random = np.random.default_rng(3)
    lengths = [1, 1, 2, 7, 8, 9, 16, 17, 47, 48, 49, 90, folder.dimensions.longest]
    texts = [random.integers(0, folder.dimensions.vocabulary, length).tolist() for length in sorted(lengths)]
    expected = TorchNetwork(folder, weights, "float32").pool(texts)
    actual = network.pool(texts)
    assert np.abs(actual - expected).max() < FAR[precision] * max(1, float(np.abs(expected).max()) / 10)
    # Neither the neighbours of a text nor what its memory held before change anything, not even a bit.
    for text, row in zip(texts, actual.copy(), strict=True):
        network._local.scratch.fill(0xFF)
        np.testing.assert_array_equal(network.pool([text])[0], row)


@needs_kernel
def test_ids_and_lengths_beyond_the_model_are_refused(make_model: Callable[..., Path]) -> None:
    folder = open_folder(make_model())
    network = next(iter(make_networks(folder, read_weights(folder), "float32")))()
    for text in ([40], [-1], [], [1] * 101):
        with pytest.raises(IndexError):
            network.pool([text])


def test_without_the_kernel_torch_computes(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["is pluto a planet?", "Salmon are farmed in floating net pens. " * 30]

    def expand(encoder: Encoder) -> list[dict[str, float]]:
        expansions = encoder.encode(encoder.tokenize(texts, Side.DOCUMENT), Side.DOCUMENT)
        return [dict(zip(each.tokens, each.weights.tolist(), strict=True)) for each in expansions]

    with_best = load_encoder(model_folder, ExpansionConfig(), precision="float32")
    monkeypatch.setenv(KERNEL, "off")
    assert best_level() is None
    plain: Any = load_encoder(model_folder, ExpansionConfig(), precision="float32")
    assert plain.kernel == "torch"
    for left, right in zip(expand(with_best), expand(plain), strict=True):
        assert left == pytest.approx(right, abs=1e-3)


@needs_kernel
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_several_threads_compute_the_same_bits(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    # However few there are here.
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
    if Kind[precision.upper()] not in levels()[0].kinds:
        pytest.skip(f"this processor has no {precision}")
    folder = open_folder(make_model(hidden_size=160, initializer_range=0.1))
    network = next(iter(make_networks(folder, read_weights(folder), precision)))()
    random = np.random.default_rng(5)
    batches = [[random.integers(0, 40, length).tolist() for length in sizes] for sizes in ([3], [9, 90], [50] * 30)]

    def compute(threads: int) -> list[NDArray[np.float32]]:
        set_compute_threads(threads)
        return [network.pool(batch).copy() for batch in batches]

    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(compute, 1).result()
        for threads in (2, 3, 7):
            for left, right in zip(alone, pool.submit(compute, threads).result(), strict=True):
                np.testing.assert_array_equal(left, right)


def test_a_team_is_no_larger_than_its_work_and_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5})
    assert [team_size(8, tokens) for tokens in (1, 63, 64, 127, 128, 4096)] == [1, 1, 2, 2, 3, 3]
    assert [team_size(asked, 4096) for asked in (1, 2, 3, 4)] == [1, 2, 3, 3]


class Timed:
    """A network whose calls take as long as it says, by a clock of its own."""

    def __init__(self, kernel: str, seconds: float, clock: list[float]) -> None:
        self.kernel, self._seconds, self._clock = kernel, seconds, clock

    def pool(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self._clock[0] += self._seconds * len(texts[0])
        return np.zeros((len(texts), 1), dtype=np.float32)


def test_the_fastest_network_comes_first() -> None:
    clock = [0.0]

    def fail() -> Timed:
        message = "could not create a primitive"
        raise RuntimeError(message)

    makers = [partial(Timed, name, seconds, clock) for name, seconds in (("slow", 2), ("fast", 1), ("slowest", 3))]
    *ranked, last = fastest_first([fail, *makers], 96, lambda: clock[0])
    assert [make().kernel for make in ranked] == ["fast", "slow", "slowest"]
    assert last is fail


@needs_kernel
def test_with_tiles_for_bfloat16_networks_are_timed(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if Kind.BFLOAT16 not in levels()[0].kinds:
        pytest.skip("this processor does not compute in bfloat16")
    folder = open_folder(make_model())
    monkeypatch.setattr("termwise.server.inference.networks.has_amx", lambda: True)
    makers = make_networks(folder, read_weights(folder), "bfloat16")
    assert sorted(make().kernel for make in makers) == ["avx512bf16, layers in float32", "torch"]


@needs_kernel
def test_networks_are_not_timed_again_where_the_kernel_was_the_fastest(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if Kind.BFLOAT16 not in levels()[0].kinds:
        pytest.skip("this processor does not compute in bfloat16")
    folder = open_folder(make_model())
    weights = read_weights(folder)
    monkeypatch.setattr("termwise.server.inference.networks.has_amx", lambda: True)
    first, *_ = make_networks(folder, weights, "bfloat16", tmp_path)
    won = first().engine == "native"
    assert any(tmp_path.rglob("kernel-wins-*")) is won
    remember(tmp_path, "kernel-wins", folder.dimensions, compute_threads())
    monkeypatch.setattr("termwise.server.inference.networks.fastest_first", lambda *_: pytest.fail("timed again"))
    engines = [make().engine for make in make_networks(folder, weights, "bfloat16", tmp_path)]
    assert engines == ["native", "torch"]


@needs_kernel
def test_the_kernel_computes_in_bfloat16_where_torch_cannot(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if Kind.BFLOAT16 not in levels()[0].kinds:
        pytest.skip("this processor does not compute in bfloat16")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    folder = open_folder(make_model())
    makers = make_networks(folder, read_weights(folder), "bfloat16")
    assert [make().kernel for make in makers] == ["avx512bf16, layers in float32"]
    assert has_bfloat16()
    monkeypatch.setenv(KERNEL, "avx512")
    assert not has_bfloat16()


def test_a_library_that_is_missing_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "no-such-library.so")
    assert levels.__wrapped__() == ()
    assert not caplog.text


@pytest.mark.parametrize("content", [b"no library", Path(mtrand.__file__).read_bytes()])
def test_a_library_that_is_not_ours_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "theirs.so")
    library.LIBRARY.write_bytes(content)
    assert levels.__wrapped__() == ()
    assert "theirs.so is not used" in caplog.text


@needs_kernel
def test_a_library_whose_sources_have_changed_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copy(library.LIBRARY, tmp_path))
    monkeypatch.setattr(library, "LIBRARY", copy)
    names = [level.name for level in levels()]
    assert [level.name for level in levels.__wrapped__()] == names, "a wheel may come without sources"
    shutil.copytree(Path(library.__file__).with_name("kernel"), tmp_path / "kernel")
    assert [level.name for level in levels.__wrapped__()] == names
    with (tmp_path / "kernel" / "body.h").open("a", encoding="utf-8") as body:
        body.write("/* A change. */\n")
    assert levels.__wrapped__() == ()
    assert "its sources have changed" in caplog.text


def test_where_it_can_be_compiled_the_kernel_runs() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if sys.platform == "linux" else []
    if shutil.which("cc") is None or platform.machine() != "x86_64" or not {"avx2", "fma"} <= set(flags):
        pytest.skip("the kernel is not for this machine")
    assert levels(), "install the package again: the tests of the kernel are skipped without it"


@pytest.mark.parametrize(
    ("switch", "here", "best"),
    [
        ("", ["avx512", "avx2"], "avx512"),
        ("avx512bf16", ["avx512", "avx2"], "avx512"),
        ("avx512", ["avx512bf16", "avx512", "avx2"], "avx512"),
        ("avx512", ["avx2"], "avx2"),
        ("avx2", ["avx512", "avx2"], "avx2"),
        ("avx2", [], None),
        ("off", ["avx2"], None),
    ],
)
def test_a_named_level_is_the_highest_that_is_used(
    monkeypatch: pytest.MonkeyPatch, switch: str, here: list[str], best: str | None
) -> None:
    monkeypatch.setenv(KERNEL, switch)
    monkeypatch.setattr(library, "levels", lambda: [SimpleNamespace(name=name) for name in here])
    level = best_level()
    assert (level.name if level else None) == best


def test_an_unknown_level_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNEL, "avx1024")
    with pytest.raises(SettingsError, match=r'TERMWISE_KERNEL cannot be "avx1024"; use one of off, avx2, avx512, '):
        best_level()
