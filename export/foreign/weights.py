"""Weights of another's graph as lazy ones, in the dtypes that our graphs have.

They may lie in the graph's own file or in one beside it. Half precision becomes single: on a CPU
ONNX Runtime computes in that anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..external_data import adopt_weights
from ..graph import Blob, Rows, Weight

SMALL = 1024  # bytes: what stays in the graph's file
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def adopt_foreign(model: ir.Model, folder: Path) -> None:
    """Makes every large initializer a ``Weight``; CheckpointError for one in another place."""
    files = {
        str(tensor.location)
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    if len(files) > 1 or any(not _is_plain(name) for name in files):
        raise CheckpointError(
            f"{folder}: found a graph with weights in {', '.join(map(repr, sorted(files)[:3]))}, "
            "expected one file beside it; this runtime cannot run it"
        )
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: missing, expected the weights of the graph; get the folder "
                "again, whole"
            )
        adopt_weights(model, folder, name)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and not isinstance(tensor, Weight) and tensor.nbytes >= SMALL:
            array = tensor.numpy()
            value.const_value = Weight(value.name or "", array.shape, array.dtype, _held(array))


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def _held(array: NDArray[Any]) -> Blob:
    return Blob(lambda start, stop: array[start:stop] if array.ndim else array)


def in_single_precision(model: ir.Model) -> None:
    """Turns half precision into single: weights, constants, casts, and what goes in and out."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, Weight) and tensor.dtype == HALF:
            widened = Blob(_widened(tensor.blob.rows), tensor.blob.step)
            value.const_value = Weight(tensor.name or "", tensor.shape.numpy(), np.float32, widened)
        elif tensor is not None and tensor.dtype == HALF:
            value.const_value = ir.Tensor(tensor.numpy().astype(np.float32), name=value.name)
        if value.dtype == HALF:
            value.type = ir.TensorType(SINGLE)
    for node in model.graph:
        to = node.attributes.get("to")
        if node.op_type == "Cast" and to is not None and to.as_int() == HALF:
            node.attributes["to"] = ir.AttrInt64("to", SINGLE)
        for value in node.outputs:
            if value.dtype == HALF:
                value.type = ir.TensorType(SINGLE)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == HALF:
            value.type = ir.TensorType(SINGLE)


def _widened(rows: Rows) -> Rows:
    return lambda start, stop: rows(start, stop).astype(np.float32)
