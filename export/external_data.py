"""Weights of models to and from their external data files, a few rows in memory at a time.

Layout of ``model.onnx_data``: the weights in graph order, large ones on page boundaries (4096
bytes, so that they can be mapped), small ones on 64 bytes, gaps filled with zeros; weights that
share a blob share one range. Offsets and lengths are in ``model.onnx``. Little-endian, no header.
A further model over the same weights has a file of its own, of the same layout, for those that the
first one does not have.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .blas import single_threaded_products
from .errors import ModelFolderError
from .folder import PAGE
from .graph import Blob, Rows, Weight
from .graph_check.onnx_file import GraphRefused
from .graph_check.weights import check_place
from .manifest import DATA_FILE, FileEntry
from .quantities import ByteProgress
from .regular_file import RegularFile
from .threads import default_threads

SMALL_ALIGNMENT = 64

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Where a blob lies in a data file, in bytes."""

    offset: int
    length: int
    file: str = DATA_FILE


Ranges = Mapping[Blob, Range]
Models = Mapping[str, ir.Model]  # by the name of the data file


def weights_of(model: ir.Model) -> Iterator[Weight]:
    """The lazy initializers of ``model``, in graph order."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, Weight):
            yield value.const_value


def plan_ranges(
    model: ir.Model, file: str = DATA_FILE, elsewhere: Ranges = MappingProxyType({})
) -> tuple[dict[Blob, Range], int]:
    """Where each blob will lie, and the size of ``file``; reads no weight.

    Those that lie ``elsewhere`` stay there.
    """
    ranges = dict(elsewhere)
    end = 0
    for weight in weights_of(model):
        if weight.blob in ranges:
            continue
        alignment = _alignment(weight.nbytes)
        offset = -(-end // alignment) * alignment
        ranges[weight.blob] = Range(offset, weight.nbytes, file)
        end = offset + weight.nbytes
    return ranges, end


def _alignment(num_bytes: int) -> int:
    return PAGE if num_bytes >= PAGE else SMALL_ALIGNMENT


def most_bytes(num_bytes: int) -> int:
    """What so many bytes take in the file at most: whole pages, whatever comes behind them."""
    return -(-num_bytes // PAGE) * PAGE


def plan_files(files: Models) -> tuple[dict[Blob, Range], dict[str, int]]:
    """Where each blob of several models will lie, and the size of every file."""
    ranges: dict[Blob, Range] = {}
    sizes: dict[str, int] = {}
    for file, model in files.items():
        ranges, sizes[file] = plan_ranges(model, file, ranges)
    return ranges, sizes


def write_weights(
    files: Models, folder: Path, progress: ByteProgress | None = None
) -> dict[str, FileEntry]:
    """Writes every weight of the models to their ``files``, and points their initializers there.

    What a model shares with one before it lies in that one's file alone. Returns what the manifest
    says of each file. Runs of rows are read and packed on all cores, and written and hashed here in
    file order, so that the bytes do not depend on the number of cores; errors of reading
    (CheckpointError) and of writing (OSError) pass through.
    """
    ranges, sizes = plan_files(files)
    written: dict[str, FileEntry] = {}
    for file, one in files.items():
        before = sum(entry.bytes for entry in written.values())

        def told(position: int, before: int = before) -> None:
            if progress is not None:
                progress(before + position, sum(sizes.values()))

        digest = _write_file(folder, file, one, ranges, told)
        written[file] = FileEntry(bytes=sizes[file], sha256=digest)
    for one in files.values():
        _point(one, ranges)
    return written


def _write_file(
    folder: Path, file: str, model: ir.Model, ranges: Ranges, told: Callable[[int], None]
) -> str:
    """Writes the weights of ``model`` that lie in ``file``; its SHA-256 in hex."""
    digest = hashlib.sha256()
    position = 0
    own = (piece for piece in pieces(model) if ranges[piece.weight.blob].file == file)
    with open(folder / file, "xb") as stream, single_threaded_products():
        jobs = ((piece, piece.compute, not piece.weight.blob.at_hand) for piece in own)
        for piece, rows in computed_ahead(jobs, default_threads()):
            offset = ranges[piece.weight.blob].offset + piece.start * piece.weight.row_bytes
            data = rows.reshape(-1).view(np.uint8).data
            for part in (bytes(offset - position), data):
                stream.write(part)
                digest.update(part)
            position = offset + len(data)
            del rows, data, part  # or this piece would live on while the next one is awaited
            told(position)
    return digest.hexdigest()


def _point(model: ir.Model, ranges: Ranges) -> None:
    """Has the initializers of ``model`` be where they were written."""
    for value in model.graph.initializers.values():
        weight = value.const_value
        if isinstance(weight, Weight):
            place = ranges[weight.blob]
            value.const_value = ir.ExternalTensor(
                place.file,
                place.offset,
                place.length,
                weight.dtype,
                shape=ir.Shape(weight.shape),
                name=value.name or "",
            )


@dataclass(frozen=True)
class Piece:
    """Some rows of a weight: what is computed at a time."""

    weight: Weight
    start: int

    @property
    def stop(self) -> int:
        return min(self.start + self.weight.step, self.weight.num_rows)

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * self.weight.row_bytes

    def compute(self) -> NDArray[Any]:
        """The rows."""
        return self.weight.rows(self.start, self.stop)


def pieces(*models: ir.Model) -> Iterator[Piece]:
    """What is computed to write ``models``, in the order of the files."""
    for weight in stored_weights(*models):
        yield from (Piece(weight, start) for start in piece_starts(weight))


def stored_weights(*models: ir.Model) -> Iterator[Weight]:
    """The weights of ``models`` in the order of the files; those that share a blob come once."""
    seen: set[Blob] = set()
    for weight in (weight for model in models for weight in weights_of(model)):
        if weight.blob not in seen:
            seen.add(weight.blob)
            yield weight


def piece_starts(weight: Weight) -> range:
    """The first rows of its pieces."""
    return range(0, weight.num_rows, weight.step)


def computed_ahead(
    jobs: Iterable[tuple[K, Callable[[], T], bool]], workers: int
) -> Iterator[tuple[K, T]]:
    """The results of ``jobs`` in their order, each with its label, computed by ``workers`` threads.

    Those with False behind them are called here, when their turn comes.

    At most ``workers`` results exist or are under way besides the one handed out. An error is
    raised when its turn comes; jobs that have not begun by then never do.
    """
    waiting: deque[tuple[K, Future[T] | Callable[[], T]]] = deque()
    ahead = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            for label, job, in_thread in jobs:
                waiting.append((label, pool.submit(job) if in_thread else job))
                ahead += in_thread
                while ahead > workers:
                    ahead -= isinstance(waiting[0][1], Future)
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            for _, pending in waiting:
                if isinstance(pending, Future):
                    pending.cancel()


def _finished(label: K, job: Future[T] | Callable[[], T]) -> tuple[K, T]:
    return label, job.result() if isinstance(job, Future) else job()


def adopt_weights(model: ir.Model, folder: Path, name: str = DATA_FILE) -> None:
    """Turns the external tensors of a loaded model into lazy weights again.

    Tensors over the same range share a blob. ModelFolderError for a range outside the data file
    or a file other than ``name`` (a graph of ours names no other).
    """
    file = folder / name
    size = file.stat().st_size
    blobs: dict[Range, Blob] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = Range(tensor.offset or 0, tensor.length or tensor.nbytes)
        needed = tensor.nbytes
        try:
            check_place(
                str(value.name),
                str(tensor.location),
                place.offset,
                place.length,
                needed,
                {name: size},
            )
        except GraphRefused as refused:
            raise ModelFolderError(f"{file}: {refused}; export the model again") from refused
        dtype = tensor.dtype.numpy()
        shape = tensor.shape.numpy()
        row_size = math.prod(shape[1:])
        blob = blobs.setdefault(place, Blob(_range_reader(file, place, dtype, row_size)))
        value.const_value = Weight(value.name or "", shape, dtype, blob)


def _range_reader(file: Path, place: Range, dtype: np.dtype[Any], row_size: int) -> Rows:
    def rows(start: int, stop: int) -> NDArray[Any]:
        array = np.empty((stop - start) * row_size, dtype)
        offset = place.offset + start * row_size * dtype.itemsize
        with RegularFile(file, ModelFolderError) as opened:
            found = opened.read_into(offset, array.view(np.uint8).data)
        if found < array.nbytes:
            raise ModelFolderError(
                f"{file}: found an end at byte {offset + found:,}, expected it where it was when "
                "this began; leave the file alone meanwhile, and try again"
            )
        return array

    return rows
