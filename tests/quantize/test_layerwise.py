"""A decoder in parts: they compose to the whole graph, and each reads its own weights only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from llama_checkpoints import (
    ALL_FIELDS,
    CASES,
    OTHER_FIELDS,
    WRAPPED,
    llama_config,
    llama_tensors,
)

from pocketlm.export.architectures import known_architectures
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.layerwise import Part, opened, run_parts, split
from pocketlm.quantize.select import match_product
from pocketlm.runtime.session import Session

IDS = (np.arange(40).reshape(2, 20) * 7 + 3) % 97
CONFIGS = {
    "gpt2": gpt2_config(n_layer=3),
    **{kind: llama_config(kind, **(OTHER_FIELDS | ALL_FIELDS[kind])) for kind in ALL_FIELDS},
    "untied": llama_config(),
    "computed rotation": llama_config(max_position_embeddings=131072),
    "rotation by length": llama_config(
        rope_scaling={"type": "dynamic", "factor": 4.0}, max_position_embeddings=12
    ),
    "small heads": llama_config("mistral", **CASES["mistral, window and small heads"].config),
}


def export(config: dict[str, Any], root: Path) -> ModelFolder:
    make = gpt2_tensors if config["model_type"] == "gpt2" else llama_tensors
    prefix = "transformer." if config["model_type"] == "gpt2" else "model."
    source = write_checkpoint(root / "source", config, make(config, prefix=prefix))
    return export_model(open_checkpoint(source), root / "out")


def whole_logits(folder: ModelFolder) -> np.ndarray[Any, Any]:
    session = Session(folder, 1)
    return np.stack([session.all_logits(row, session.new_cache()).copy() for row in IDS])


def logits_in_parts(parts: tuple[Part, ...]) -> np.ndarray[Any, Any]:
    with opened(parts, threads=1) as running:
        return run_parts(running, IDS)["logits"]


def test_every_architecture_is_split_here() -> None:
    found = {config["model_type"] for config in CONFIGS.values()}
    assert found | set(WRAPPED) == set(known_architectures())


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_compose_to_the_whole_graph(name: str, tmp_path: Path) -> None:
    folder = export(CONFIGS[name], tmp_path)
    model = open_decoder(folder).model
    parts = split(model)
    assert [part.layer for part in parts] == [None, *range(folder.shape.num_layers), None]
    expected = whole_logits(folder)
    np.testing.assert_allclose(
        logits_in_parts(parts), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    # Every product with a constant weight is in one part, and one layer's are together.
    products = [match_product(node) for node in model.graph]
    assert [linear.name for part in parts for linear in part.linear] == [
        product.name for product in products if product is not None
    ]
    for part in parts[1:-1]:
        assert {name.split(".")[1] for name in part.products} == {str(part.layer)}
        assert len(part.inputs) <= 2


def test_nodes_that_a_rotation_adds_are_cut_as_well(tmp_path: Path) -> None:
    """Behind the embedding and before each product: in blocks of 8, there and back again."""
    folder = export(CONFIGS["gpt2"], tmp_path)
    model = open_decoder(folder).model
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0].astype(np.float32)
    graph = Graph.editing(model)
    for node in list(model.graph):
        if match_product(node) is not None:
            x = node.inputs[0]
            assert x is not None
            with graph.before(node):
                width = int(match_product(node).in_features)  # type: ignore[union-attr]
                for matrix, name in ((turn, "there"), (turn.T, "back")):
                    blocks = graph.Reshape(x, graph.int64s(0, 0, -1, 8))
                    turned = graph.MatMul(blocks, graph.constant(matrix, f"turn.{name}"))
                    x = graph.Reshape(turned, graph.int64s(0, 0, width), name=f"turned.{name}")
            node.replace_input_with(0, x)
    expected = whole_logits(folder)
    np.testing.assert_allclose(
        logits_in_parts(split(model)), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_a_part_reads_its_own_weights_and_those_only(tmp_path: Path) -> None:
    parts = split(open_decoder(export(CONFIGS["untied"], tmp_path)).model)
    names = [{str(weight.name) for weight in part.weights()} for part in parts]
    assert names[0] == {"embed_tokens.weight"}
    assert names[-1] == {"lm_head.weight"}
    tables = {"rope.cosines", "rope.sines"}
    assert names[1] & names[2] <= {name for name in names[1] if name.startswith("rope")} | tables
    assert set(parts[1].products) < names[1]


def test_what_passes_through_needs_no_weight(tmp_path: Path) -> None:
    """The input of the head's product is there before the head is read."""
    head = split(open_decoder(export(CONFIGS["untied"], tmp_path)).model)[-1]
    (value,) = head.products.values()
    assert head.weights([value]) == []
    x = np.ones((2, 20, 64), np.float32)
    with head.open([value]) as opened_head:
        assert opened_head.run(IDS, {value: x})[value] is x


def test_the_rest_of_the_network_runs_with_other_weights(tmp_path: Path) -> None:
    """From a layer on, with what crosses into it, as the whole does with that checkpoint."""
    config, name = CONFIGS["untied"], "layers.1.mlp.down_proj.weight"
    tensors = llama_tensors(config)
    model = open_decoder(export(config, tmp_path / "before")).model
    changed = np.round(tensors[f"model.{name}"] * 4) / 4
    source = write_checkpoint(tmp_path / "source", config, tensors | {f"model.{name}": changed})
    expected = whole_logits(export_model(open_checkpoint(source), tmp_path / "out"))
    parts = split(model)
    with opened(parts, threads=1) as running:
        crossing = run_parts(running[:2], IDS)
        plain = run_parts(running[2:], IDS, crossing)["logits"]
        found = run_parts(running[2:], IDS, crossing, {name: changed})["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_graph_without_attention_nodes_is_refused() -> None:
    graph = Graph("other")
    graph.output(graph.Identity(graph.input("x", np.float32, [1])), "logits", np.float32, [1])
    with pytest.raises(RequestError, match="without GroupQueryAttention, expected one that pocket"):
        split(ir.Model(graph.ir, ir_version=10))
