"""Model folders as other runtimes have them, small, made without those runtimes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir
from checkpoint_files import write_tokenizer
from onnx_ir.passes import common
from traced_graphs import LLAMA, VOCAB, Style, traced_model

from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph


def transformers_js_folder(out: Path, style: Style = LLAMA, *, beside: bool = False) -> Path:
    """A traced graph in ``onnx/``, its weights in its own file or ``beside`` it."""
    (out / "onnx").mkdir(parents=True)
    data = "model.onnx_data" if beside else None
    ir.save(traced_model(style), out / "onnx" / "model.onnx", external_data=data)
    config = {
        "model_type": "llama",
        "hidden_size": style.width,
        "num_attention_heads": style.heads,
        "max_position_embeddings": style.context,
    }
    (out / "config.json").write_text(json.dumps(config))
    write_tokenizer(out, VOCAB)
    return out


def genai_folder(folder: ModelFolder, out: Path) -> Path:
    """A Llama's model folder of ours as onnxruntime-genai's builder would have written it."""
    out.mkdir()
    model = ir.load(folder.graph_file())
    g = Graph.editing(model)
    inputs = {str(value.name): value for value in model.graph.inputs}
    mask = inputs["attention_mask"]
    with g.before(next(iter(model.graph)), "attn_mask"):
        ones = g.ReduceSum(mask, g.int64s(1), keepdims=0)
        last = g.Cast(g.Sub(ones, g.int64s(1)), to=ir.DataType.INT32)
        total = g.Squeeze(g.Cast(g.Shape(mask, start=1, end=2), to=ir.DataType.INT32))
    for node in list(model.graph):
        if node.op_type == "GroupQueryAttention":
            for index, value in {5: last, 6: total, 10: None}.items():
                node.replace_input_with(index, value)
            node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", -1)
        elif node.op_type == "RMSNormalization":
            node.op_type = "SimplifiedLayerNormalization"
            node.attributes["stash_type"] = ir.AttrInt64("stash_type", 1)
        elif node.op_type == "Slice" and str(node.name).endswith("last_rows"):
            assert node.inputs[0] is not None
            g.replace(node.outputs[0], node.inputs[0])
    common.RemoveUnusedNodesPass()(model)
    for name in ("num_logits_to_keep", "position_ids"):
        model.graph.inputs.remove(inputs[name])
    model.graph.initializers.pop("num_logits_to_keep")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape) == 4:
            value.shape = ir.Shape([*value.shape[:3], "kv_cache_dim"])
    model.graph.opset_imports[""] = 21
    model.producer_name, model.producer_version = "onnxruntime-genai", "0.18.0"
    ir.save(model, out / "model.onnx", external_data="model.onnx.data")
    about = json.loads((folder.path / "genai_config.json").read_text())
    del about["model"]["decoder"]["inputs"]["position_ids"]
    about["model"]["type"] = "llama"
    (out / "genai_config.json").write_text(json.dumps(about))
    shutil.copy(folder.path / "tokenizer.json", out)
    return out
