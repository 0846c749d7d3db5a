"""Weights of a model to and from its external data file, one tensor in memory at a time.

Layout of ``model.onnx_data``: the weights in graph order, large ones on page boundaries (4096
bytes, so that they can be mapped), small ones on 64 bytes, gaps filled with zeros; weights that
share a blob share one range. Offsets and lengths are in ``model.onnx``. Little-endian, no header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .errors import ModelFolderError
from .folder import PAGE
from .graph import Blob, Weight

DATA_FILE = "model.onnx_data"
SMALL_ALIGNMENT = 64

Progress = Callable[[int, int], None]  # bytes written so far, bytes in all


@dataclass(frozen=True)
class Range:
    """Where a blob lies in the data file, in bytes."""

    offset: int
    length: int


def weights_of(model: ir.Model) -> Iterator[Weight]:
    """The lazy initializers of ``model``, in graph order."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, Weight):
            yield value.const_value


def plan_ranges(model: ir.Model) -> tuple[dict[Blob, Range], int]:
    """Where each blob will lie, and the size of the file; reads no weight."""
    ranges: dict[Blob, Range] = {}
    end = 0
    for weight in weights_of(model):
        if weight.blob in ranges:
            continue
        alignment = PAGE if weight.nbytes >= PAGE else SMALL_ALIGNMENT
        offset = -(-end // alignment) * alignment
        ranges[weight.blob] = Range(offset, weight.nbytes)
        end = offset + weight.nbytes
    return ranges, end


def write_weights(model: ir.Model, folder: Path, progress: Progress | None = None) -> str:
    """Writes every weight of ``model`` and points its initializers at the file.

    Returns the file's SHA-256 in hex. Each weight is read, written and dropped before the next;
    errors of reading (CheckpointError) and of writing (OSError) pass through.
    """
    ranges, total = plan_ranges(model)
    written: set[Blob] = set()
    digest = hashlib.sha256()
    position = 0
    with open(folder / DATA_FILE, "xb") as stream:
        for weight in weights_of(model):
            if weight.blob in written:
                continue
            written.add(weight.blob)
            place = ranges[weight.blob]
            gap = bytes(place.offset - position)
            data = weight.read().reshape(-1).view(np.uint8).data
            for part in (gap, data):
                stream.write(part)
                digest.update(part)
            del data, part  # or this weight would live on while the next one is read
            position = place.offset + place.length
            if progress is not None:
                progress(position, total)
    for value in model.graph.initializers.values():
        weight = value.const_value  # type: ignore[assignment]
        if isinstance(weight, Weight):
            place = ranges[weight.blob]
            value.const_value = ir.ExternalTensor(
                DATA_FILE,
                place.offset,
                place.length,
                weight.dtype,
                shape=ir.Shape(weight.shape),
                name=value.name or "",
            )
    return digest.hexdigest()


def adopt_weights(model: ir.Model, folder: Path) -> None:
    """Turns the external tensors of a loaded model into lazy weights again.

    Tensors over the same range share a blob. ModelFolderError for a range outside the data file
    or a file other than ``model.onnx_data`` (a graph of ours names no other).
    """
    file = folder / DATA_FILE
    size = file.stat().st_size
    blobs: dict[Range, Blob] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = Range(tensor.offset or 0, tensor.length or tensor.nbytes)
        if tensor.location != DATA_FILE or place.offset < 0 or place.length != tensor.nbytes:
            raise ModelFolderError(
                f"{folder}: weight {value.name!r} lies in {tensor.location!r} at {place}, expected "
                f"{tensor.nbytes} bytes of {DATA_FILE}; export the model again"
            )
        if place.offset + place.length > size:
            raise ModelFolderError(
                f"{file}: {size} bytes, expected at least {place.offset + place.length} for "
                f"weight {value.name!r}; export the model again"
            )
        dtype = tensor.dtype.numpy()
        blob = blobs.setdefault(place, Blob(_range_reader(file, place, dtype)))
        value.const_value = Weight(value.name or "", tensor.shape.numpy(), dtype, blob)


def _range_reader(file: Path, place: Range, dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        count = place.length // dtype.itemsize
        return np.fromfile(file, dtype, count, offset=place.offset)

    return read
