"""The pass for CUDA's attention kernel, run on the CPU, whose kernel takes float16 too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import llama_config, llama_tensors
from numpy.typing import NDArray

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.float16_attention import AttendInFloat16, float16_attention_graph
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph_pass import Outcome
from pocketlm.export.writing import export_model
from pocketlm.models.local import demo_checkpoint
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import WEIGHTS_FOLDER

IDS = np.random.default_rng(5).integers(0, 97, (1, 24))


def llama_folder(out: Path, precision: str = "fp32") -> ModelFolder:
    """A grouped-query model with a window, and heads of 16: attention rotates by itself."""
    config = llama_config("mistral", sliding_window=9, head_dim=32)
    checkpoint = write_checkpoint(out / "checkpoint", config, llama_tensors(config))
    return export_model(open_checkpoint(checkpoint), out / precision, precision_of(precision))


def logits(
    graph: bytes | Path, folder: ModelFolder, dtype: type[np.floating]
) -> NDArray[np.float32]:
    """All logits of IDS, by a plain run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(WEIGHTS_FOLDER, str(folder.path))
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    ids = IDS % folder.shape.vocab_size
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    rows: NDArray[np.float32] = session.run(["logits"], feeds)[0]
    return rows


def test_only_the_attention_and_its_cache_change(tiny_folder: ModelFolder) -> None:
    before = ir.load(tiny_folder.path / "model.onnx")
    graph = float16_attention_graph(tiny_folder)
    after = ir.from_proto(onnx.load_model_from_string(graph))
    known = {node.name for node in before.graph}
    added = [node.op_type for node in after.graph if node.name not in known]
    # Of each layer: packed q, k and v there, the result back.
    assert added == ["Cast"] * 2 * tiny_folder.shape.num_layers
    assert [node.op_type for node in after.graph if node.name in known] == [
        node.op_type for node in before.graph
    ]
    for value in (*after.graph.inputs, *after.graph.outputs):
        is_cache = str(value.name).startswith(("past_key_values.", "present."))
        assert (value.dtype == ir.DataType.FLOAT16) == is_cache, value.name


def test_the_weights_stay_where_they_are(tiny_folder: ModelFolder) -> None:
    before = ir.load(tiny_folder.path / "model.onnx")
    graph = float16_attention_graph(tiny_folder)
    after = ir.from_proto(onnx.load_model_from_string(graph))
    places = weight_places(before)
    assert len(places) > 10 and {file for file, _, _ in places.values()} == {"model.onnx_data"}
    assert weight_places(after) == places


def weight_places(model: ir.Model) -> dict[str, tuple[str, int | None, int | None]]:
    """File, offset and length of every initializer that lies outside the graph."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: (str(tensor.location), tensor.offset, tensor.length)
        for name, tensor in tensors.items()
        if isinstance(tensor, ir.ExternalTensor)
    }


def test_a_second_run_finds_nothing_to_do(tiny_folder: ModelFolder) -> None:
    model = ir.load(tiny_folder.path / "model.onnx")
    assert len(AttendInFloat16().apply(model).changed) == tiny_folder.shape.num_layers
    assert AttendInFloat16().apply(model) == Outcome()


def error(folder: ModelFolder) -> float:
    """The largest difference that float16 attention makes, as a share of the largest logit."""
    file = folder.path / "model.onnx"
    expected = logits(file, folder, np.float32)
    found = logits(float16_attention_graph(folder), folder, np.float16)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_a_trained_model_stays_within_a_thousandth(tmp_path: Path) -> None:
    demo = export_model(open_checkpoint(demo_checkpoint()), tmp_path / "demo")
    assert 0 < error(demo) < 1e-3


def test_random_weights_stay_within_what_half_precision_loses(tiny_folder: ModelFolder) -> None:
    # Keys and queries keep 11 bits; weights this large turn that into other attention scores.
    assert 0 < error(tiny_folder) < 5e-3


@pytest.mark.parametrize("precision", ["fp32", "int8-weight"])
def test_rotated_and_windowed_logits_stay_within_it_too(tmp_path: Path, precision: str) -> None:
    # A quantized graph also rounds its activations, then to other integers.
    limit = 5e-3 if precision == "fp32" else 5e-2
    assert 0 < error(llama_folder(tmp_path, precision)) < limit
