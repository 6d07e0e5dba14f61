"""Models of other layouts on a real server: put from a folder, deployed, asked on both sides, and searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

from byte_pairs import write_byte_pairs
from termwise.client import Client, Document
from termwise.v1 import trained_models_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = {"cat": "the cat sat", "mat": "mats, mats and mats", "hat": "a hat"}
MODELS = {
    "routed": ("sparse_encoder", "transformers"),
    "modern": ("transformers", "torch"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small model of each layout."""
    root = tmp_path_factory.mktemp("models")
    figures = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    figures |= {"max_position_embeddings": 64, "pad_token_id": 1}
    special = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    torch.manual_seed(5)
    for name, kind, more in (("modern", "ModernBert", special), ("plain", "Albert", {"embedding_size": 16})):
        (root / name).mkdir()
        size = write_byte_pairs(root / name)
        config = getattr(transformers, f"{kind}Config")(vocab_size=size, initializer_range=0.3, **figures, **more)
        getattr(transformers, f"{kind}ForMaskedLM")(config).save_pretrained(root / name)
    network = Transformer(str(root / "plain"), transformer_task="fill-mask")
    weights = torch.rand(size, generator=torch.Generator().manual_seed(3)) + 0.5
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(network.tokenizer, weight=weights, frozen=True)],
        document_modules=[network, SpladePooling("max", "log1p_relu")],
    )
    SparseEncoder(modules=[router], device="cpu").save_pretrained(str(root / "routed"), create_model_card=False)
    return root


def test_other_layouts_from_a_folder_to_hits(launch: Callable[..., Any], folders: Path, tmp_path: Path) -> None:
    server = launch(tmp_path / "data", "--model-folder", str(folders))
    server.wait_ready()
    with Client(server.address) as client:
        for name, (layout, engine) in MODELS.items():
            if name == "routed":  # its files lie in folders
                client.models.put(name)
                client.models.upload(name, folders / name)
            else:
                client.models.put(name, source_uri=f"file://{folders / name}")
                list(client.models.download(name))
            model = client.models.get(name)
            assert trained_models_pb2.TrainedModel.Layout.Name(model.layout) == f"LAYOUT_{layout.upper()}"
            assert (model.fingerprint == model.query_fingerprint) == (layout == "transformers")
            assert client.deployments.start(name, deployment_id=f"{name}_1").engine == engine
        ask_both_sides(client, folders)

        field = {"model_id": "routed", "search_deployment_id": "routed_1"}
        mapping = {"properties": {"text": {"text": {}}, "vector": {"sparse_vector": field}}}
        inference = {"deployment_id": "routed_1", "input_output": [{"input_field": "text", "output_field": "vector"}]}
        client.pipelines.put("expand", {"processors": [{"inference": inference}]})
        client.indices.create("docs", mapping=mapping, settings={"default_pipeline": "expand"})
        client.indices.bulk("docs", [Document({"text": text}, id=name) for name, text in TEXTS.items()])
        query = {"text_expansion": {"field": "vector", "text": "the cat"}}
        peer = SparseEncoder(str(folders / "routed"), device="cpu")
        scores = peer.similarity(peer.encode_query(["the cat"]), peer.encode_document(list(TEXTS.values())))[0]
        found = {hit.id: hit.score for hit in client.search("docs", query=query)}
        assert found == pytest.approx(dict(zip(TEXTS, scores.tolist(), strict=True)), rel=1e-3)


def ask_both_sides(client: Client, folders: Path) -> None:
    """Compare what deployments answer with the peer and with the table."""
    text = "the cat sat on a mat"
    peer = SparseEncoder(str(folders / "routed"), device="cpu")
    for side, encode in (("document", peer.encode_document), ("query", peer.encode_query)):
        answered = client.expand("routed_1", text, input_type=side).as_dict()
        assert answered == pytest.approx(dict(peer.decode(encode(text))), abs=1e-4)
    assert client.expand("modern_1", text).as_dict()
