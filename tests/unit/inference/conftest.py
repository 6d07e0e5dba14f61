from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from default_model import fetch_default_model
from termwise.server.inference.base import Encoder, ExpansionConfig
from termwise.server.inference.hardware import has_bfloat16
from termwise.server.inference.loader import load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "the", "cat", "sat", "##s", "mat", "caf", "##e"]

_NAMES = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "mpnet": "MPNet",
    "electra": "Electra",
}


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return fetch_default_model()


@pytest.fixture(scope="session")
def parity_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="session")
def encoder(model_folder: Path, parity_cache: Path) -> Encoder:
    """Load the default model in float32."""
    return load_encoder(model_folder, ExpansionConfig(), precision="float32", cache=parity_cache)


@pytest.fixture(scope="session")
def bfloat16_encoder(model_folder: Path, parity_cache: Path) -> Encoder:
    if not has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    return load_encoder(model_folder, ExpansionConfig(), precision="bfloat16", cache=parity_cache)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make the folder of a small random model of an architecture, with the files of a vocabulary of 40 tokens."""

    def make(architecture: str = "bert", **changes: Any) -> Path:
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415

        folder = tmp_path_factory.mktemp(architecture)
        size = write_vocabulary(folder, architecture)
        torch.manual_seed(7)
        shared = {"vocab_size": size, "max_position_embeddings": 100, "initializer_range": 0.6}
        if architecture == "distilbert":
            figures = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        else:
            figures = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        if architecture == "electra":
            figures["embedding_size"] = 24
        name = _NAMES[architecture]
        config = getattr(transformers, f"{name}Config")(**(figures | shared | changes))
        model: Any = getattr(transformers, f"{name}ForMaskedLM")(config).eval()
        with torch.no_grad():
            # transformers starts them at 0, where a forgotten one would not be missed.
            for part, tensor in model.named_parameters():
                if part.endswith("bias"):
                    tensor.normal_(0, 0.3)
        model.save_pretrained(folder)
        return folder

    return make


def write_vocabulary(folder: Path, architecture: str) -> int:
    """Write the files that an architecture's tokenizer is made of; gives the number of tokens."""
    settings = {"do_lower_case": True}
    if architecture == "xlm-roberta":
        from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415

        tokens = [
            "<s>",
            "<pad>",
            "</s>",
            "<unk>",
            "\u2581",
            *"abcehmnost.w34",
            "\u2581the",
            "\u2581cat",
            "at",
            "\u2581s",
        ]
        tokens += [f"extra{number}" for number in range(40 - len(tokens))]
        weighed = [(token, -float(number % 7 + 2 * (len(token) == 1))) for number, token in enumerate(tokens)]
        tokenizer = Tokenizer(models.Unigram(weighed, unk_id=3))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {}
    elif architecture == "roberta":
        # Pairs of bytes: single ones first, then what merges make of them. A blank is written as this letter.
        blank = "\u0120"
        merges = [(blank, "c"), (f"{blank}c", "a"), (f"{blank}ca", "t"), ("t", "h"), ("th", "e"), (blank, "the")]
        tokens = ["<s>", "<pad>", "</s>", "<unk>", blank, *"abcehmnostw34", *map("".join, merges)]
        tokens += [f"extra{number}" for number in range(39 - len(tokens))] + ["<mask>"]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings = {}
    else:
        angled = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        tokens = [*angled, *_TOKENS[5:]] if architecture == "mpnet" else [*_TOKENS]
        tokens += [f"w{number}" for number in range(40 - len(tokens))]
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(tokens)
