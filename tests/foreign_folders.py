"""Model folders as other runtimes have them, small, made without those runtimes."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
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


def quantize_dynamic(source: Path, out: Path, weights: str, **options: Any) -> Path:
    """What transformers.js' own script makes ``model_int8.onnx`` and ``model_uint8.onnx`` with."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    kind = {"int8": "QInt8", "uint8": "QUInt8"}[weights]
    quantization.quantize_dynamic(
        source,
        out,
        weight_type=quantization.QuantType[kind],
        extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        **options,
    )
    return out


def pack(source: Path, out: Path) -> Path:
    """What transformers.js' own script makes ``model_q4.onnx`` with."""
    import onnx

    packing: Any = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    models: Any = importlib.import_module("onnxruntime.quantization.onnx_model")
    model = models.ONNXModel(onnx.load(source))
    model.replace_gemm_with_matmul()  # which is what that packs alone
    quantizer = packing.MatMulNBitsQuantizer(
        model.model, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    onnx.save(quantizer.model.model, out)
    return out


def halve(source: Path, out: Path) -> Path:
    """The graph in half precision, as ``model_fp16.onnx`` and ``model_q4f16.onnx`` are."""
    model = ir.load(source)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(tensor.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    ir.save(model, out)
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
