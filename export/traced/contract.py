"""What a traced graph must be before anything is done with it, and the sizes that it tells.

The graph comes from another program, so nothing about it is taken for granted: its operators, where
its weights lie, and the names, dtypes and dimensions of its inputs and outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from ..errors import CheckpointError
from ..folder import DecoderShape, cache_names
from ..graph_check.operators import TRACED
from ..manifest import DATA_FILE

OPSETS = range(18, 24)
# Of a model that does not say how many tokens it can attend to: ALiBi has no such limit.
DEFAULT_CONTEXT = 2048


def check_trace(model: ir.Model) -> None:
    """Raises CheckpointError for what is not plain ONNX with weights in ``model.onnx_data``."""
    version = model.opset_imports.get("", 0)
    if version not in OPSETS:
        raise _refused(f"opset {version}", f"{OPSETS.start} to {OPSETS.stop - 1}")
    if model.functions:
        raise _refused(f"{len(model.functions)} functions", "none")
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise _refused(f"the operator {node.domain}::{node.op_type}", "operators of ONNX alone")
    for graph in (model.graph, *model.graph.subgraphs()):
        for name, tensor in _tensors(graph):
            if isinstance(tensor, ir.ExternalTensor) and tensor.location != DATA_FILE:
                raise _refused(f"{name!r} in the file {tensor.location!r}", DATA_FILE)
            if isinstance(tensor, ir.ExternalTensor) and graph is not model.graph:
                raise _refused(f"the weight {name!r} in a branch", "weights of the whole graph")


def check_operators(model: ir.Model) -> None:
    """Raises CheckpointError for an operator that a folder may not have, of a finished graph."""
    for node in model.graph:
        if (node.domain, node.op_type) not in TRACED:
            raise _refused(f"the operator {node.op_type}", "one of those that decoders need")


def _tensors(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every tensor of this graph, wherever it stands, but not of its subgraphs."""
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield str(value.name), value.const_value
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield str(node.name), attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                for tensor in attribute.as_tensors():
                    yield str(node.name), tensor
            elif attribute.type.name.startswith("SPARSE"):
                raise _refused(f"a sparse tensor in {node.name!r}", "dense ones")


def read_shape(model: ir.Model, sizes: dict[str, int]) -> DecoderShape:
    """The sizes of a graph that our loop can feed.

    ``sizes`` has what the graph does not tell: hidden_size, num_heads and context_length, each of
    which may be missing. Raises CheckpointError that names what cannot be fed.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    layers = {
        int(found[1]) for name in inputs if (found := re.match(r"past_key_values\.(\d+)", name))
    }
    past, present = zip(*cache_names(len(layers)), strict=True) if layers else ((), ())
    wrong = ({"input_ids", "attention_mask", *past} ^ (inputs.keys() - {"position_ids"})) | (
        {"logits", *present} ^ outputs.keys()
    )
    if wrong or not layers:
        names = ", ".join(sorted(wrong)[:4]) or "no past_key_values"
        raise _refused(
            names, "input_ids, attention_mask, and keys and values of every layer by themselves"
        )
    caches = {_cache_size(inputs[name]) for name in past}
    caches |= {_cache_size(outputs[name]) for name in present}
    if len(caches) > 1:
        raise _refused(f"caches of different sizes {sorted(caches)}", "one size for all layers")
    for name in {"input_ids", "attention_mask", "position_ids"} & inputs.keys():
        _dimensions(inputs[name], ir.DataType.INT64, 2)
    vocab_size = _dimensions(outputs["logits"], ir.DataType.FLOAT, 3)[2]
    if not isinstance(vocab_size, int):
        raise _refused(f"logits of {vocab_size} numbers", "a fixed vocabulary")
    ((kv_heads, head_size),) = caches
    num_heads = sizes.get("num_heads", kv_heads)
    return DecoderShape(
        vocab_size=vocab_size,
        context_length=sizes.get("context_length", DEFAULT_CONTEXT),
        hidden_size=sizes.get("hidden_size", num_heads * head_size),
        num_layers=len(layers),
        num_heads=num_heads,
        kv_heads=kv_heads,
        head_size=head_size,
    )


def _cache_size(value: ir.Value) -> tuple[int, int]:
    """(K, E) of a (B, K, P, E) input or output of keys or values."""
    _, kv_heads, length, head_size = _dimensions(value, ir.DataType.FLOAT, 4)
    if not isinstance(kv_heads, int) or not isinstance(head_size, int) or isinstance(length, int):
        raise _refused(
            f"{value.name} of {value.shape}", "(batch, key/value heads, past tokens, head size)"
        )
    return kv_heads, head_size


def _dimensions(value: ir.Value, dtype: ir.DataType, rank: int) -> list[int | str]:
    shape = value.shape
    if value.dtype != dtype or shape is None or len(shape) != rank:
        raise _refused(f"{value.name} as {value.dtype} {shape}", f"{dtype} of {rank} dimensions")
    return [d if isinstance(d, int) else str(d.value) for d in shape]


def _refused(found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the traced graph has {found}, expected {expected}; this runtime cannot run it"
    )
