"""The nodes of a graph in another order: the same model, its largest weight packed first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.largest_first import largest_first
from pocketlm.runtime.session import Session

IDS = [5, 60, 7, 90, 11]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_the_head_comes_first_and_all_else_stays(
    tiny_folder: ModelFolder, precision: str, tmp_path: Path
) -> None:
    folder = export_model(tiny_folder, tmp_path / "out", precision_of(precision))
    data = folder.graph_file().read_bytes()
    found, model = onnx.load_from_string(largest_first(data)), onnx.load_from_string(data)
    assert len(largest_first(data)) == len(data)
    assert found.graph.node[0].name.startswith("lm_head")
    head = found.graph.node[0]
    assert list(found.graph.node[1:]) == [node for node in model.graph.node if node != head]
    del found.graph.node[:], model.graph.node[:]
    assert found == model


def test_it_computes_the_same(tiny_folder: ModelFolder) -> None:
    """Against ONNX Runtime on the file itself."""
    session = Session(tiny_folder)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    plain = onnxruntime.InferenceSession(str(tiny_folder.graph_file()), options)
    feeds = {"input_ids": np.array([IDS]), "attention_mask": np.ones((1, len(IDS)), np.int64)}
    feeds["position_ids"] = np.arange(len(IDS))[None]
    for item in plain.get_inputs():
        if item.name.startswith("past"):
            feeds[item.name] = np.empty((1, item.shape[1], 0, item.shape[3]), np.float32)
    feeds = {item.name: feeds[item.name] for item in plain.get_inputs()}
    (expected,) = plain.run(["logits"], feeds)
    found = session.all_logits(IDS, session.new_cache())
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-5)


def test_sizes_are_read_packed_or_not_and_a_graph_without_weights_stays() -> None:
    small = helper.make_tensor("small", TensorProto.INT8, [3, 70_000], b"\0" * 210_000, raw=True)
    large = helper.make_tensor("large", TensorProto.INT8, [3, 80_000], b"\0" * 240_000, raw=True)
    nodes = [
        helper.make_node("Cast", ["small"], ["a"], to=TensorProto.FLOAT, name="first"),
        helper.make_node("Cast", ["large"], ["b"], to=TensorProto.FLOAT, name="second"),
    ]
    for weights, expected in (([large, small], "second"), ([small], "first"), ([], "first")):
        graph = helper.make_graph(nodes, "g", [], [], weights)
        data = helper.make_model(graph).SerializeToString()
        assert onnx.load_from_string(largest_first(data)).graph.node[0].name == expected
    packed = data_with_packed_dims(small, large, nodes)
    assert onnx.load_from_string(largest_first(packed)).graph.node[0].name == "second"


def data_with_packed_dims(
    small: TensorProto, large: TensorProto, nodes: list[onnx.NodeProto]
) -> bytes:
    """As another writer may: numbers of one field in one run."""
    graph = helper.make_graph(nodes, "g", [], [], [small, large])
    data: bytes = helper.make_model(graph).SerializeToString()
    for size in (b"\xf0\xa2\x04", b"\x80\xf1\x04"):  # 70,000 and 80,000
        assert data.count(b"\x08\x03\x08" + size) == 1
        data = data.replace(b"\x08\x03\x08" + size, b"\x0a\x04\x03" + size)
    return data
