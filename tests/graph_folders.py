"""Model folders whose graphs differ from a real one in one respect, with a manifest that agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from checkpoint_files import gpt2_config, write_checkpoint
from model_folders import file_entry, with_manifest
from numpy.typing import ArrayLike, DTypeLike
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from traced_graphs import VOCAB, Style, traced_model, write_trace

from pocketlm.export.folder import ModelFolder
from pocketlm.export.manifest import DECODER
from pocketlm.export.via_optimum import open_for_tracing, traced_decoder
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

Change = Callable[[ModelProto], object]


def load(folder: ModelFolder, name: str = DECODER) -> ModelProto:
    """The graph of that name in ``folder`` without its weights."""
    return onnx.load(folder.graph_file(name), load_external_data=False)


def folder_with(
    folder: ModelFolder,
    to: Path,
    graph: bytes,
    decoder: dict[str, int] | None = None,
    name: str = DECODER,
) -> ModelFolder:
    """A folder that opens, with ``graph`` as that of the ``name`` and the rest of ``folder``."""
    to.mkdir(parents=True)
    changed = folder.graph(name).file
    for file in folder.files:
        if file != changed:
            (to / file).symlink_to(folder.path / file)
    (to / changed).write_bytes(graph)
    manifest = replace(
        folder.manifest,
        files=folder.files | {changed: file_entry(to / changed)},
        decoder=replace(folder.shape, **decoder or {}),
    )
    return with_manifest(to, manifest)


def traced_folder(
    to: Path, style: Style, *, rewrite: bool, precision: str = "fp32", prefill: bool = False
) -> ModelFolder:
    """The folder of a graph that a tracer made, its cache in place or growing."""
    beside = to.parent / f"{to.name}-trace"
    source = open_for_tracing(write_checkpoint(beside / "source", gpt2_config(vocab_size=VOCAB)))
    trace = write_trace(traced_model(style), style, beside)
    decoder = traced_decoder(source, beside, trace, rewrite=rewrite)
    return export_model(decoder, to, precision_of(precision, prefill=prefill))


def node(model: ModelProto, operator: str, number: int = 0) -> NodeProto:
    """The first node of that operator, or a later one."""
    found: list[NodeProto] = [item for item in model.graph.node if item.op_type == operator]
    return found[number]


def weight(model: ModelProto, name: str = "") -> TensorProto:
    """The initializer of that name; the first one in the data file without a name."""
    found: list[TensorProto] = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name == name or (not name and tensor.data_location == TensorProto.EXTERNAL)
    ]
    return found[0]


def constant(model: ModelProto, name: str, values: ArrayLike, dtype: DTypeLike = np.int64) -> str:
    """Adds an initializer in the graph's own file."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def insert(
    model: ModelProto, operator: str, inputs: list[str], into: int = 0, **attributes: Any
) -> str:
    """Puts a node before the node number ``into``; returns the name of what it makes."""
    name = f"{operator}.{len(model.graph.node)}"
    made = onnx.helper.make_node(operator, inputs, [name], name, **attributes)
    nodes = list(model.graph.node)
    nodes.insert(into, made)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return name


def set_attribute(operator: str, name: str, value: Any) -> Change:
    """Gives an attribute another value, or adds it."""

    def change(model: ModelProto) -> None:
        found = node(model, operator)
        for attribute in list(found.attribute):
            if attribute.name == name:
                found.attribute.remove(attribute)
        found.attribute.append(onnx.helper.make_attribute(name, value))

    return change


def set_input(operator: str, index: int, name: str) -> Change:
    """Connects an input with another value."""
    return lambda model: node(model, operator).input.__setitem__(index, name)


def set_place(**entries: str) -> Change:
    """Says of the first weight that it lies elsewhere."""

    def change(model: ModelProto) -> None:
        places = weight(model).external_data
        for name, value in entries.items():
            found = [entry for entry in places if entry.key == name]
            entry = found[0] if found else places.add(key=name)
            entry.value = value

    return change
