"""What an export will read, write and need, from config.json and headers alone.

The plan comes from the graph that the export writes, so the two cannot differ. Time is measured:
some pieces of every kind of weight, of made-up numbers, are packed as the export would pack them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .architectures import find_architecture
from .checkpoint import (
    Checkpoint,
    CheckpointTensor,
    load_config,
    open_checkpoint,
    refuse_other_folders,
)
from .config_fields import read_fields
from .external_data import Piece, computed_ahead, piece_starts, stored_weights
from .graph import PIECE_BYTES, Rows
from .memory import peak_rss_bytes, rss_bytes
from .quantities import duration_text, size_text
from .threads import default_threads
from .tokenizers import given_tokenizer

# Pieces of one kind of weight that are timed, for each thread; those over a size are not.
TIMED_PIECES = 2
LARGEST_TIMED = 32 * PIECE_BYTES
HASHED = 1 << 26  # bytes
HEADERS_FORMAT = "config.json"  # of a checkpoint that has nothing else


@dataclass(frozen=True)
class Forecast:
    """What is measured before a model is written; waiting for the disk is not in the seconds."""

    seconds: float
    memory_bytes: int  # highest resident set of the process
    disk_bytes: int  # at most, while it lasts
    left_out: bool = False  # as it takes longer than what nobody asked for may take


@dataclass(frozen=True)
class ExportPlan:
    """What an export will do, known before the first byte is written. Sizes in bytes."""

    out: Path
    architecture: str
    num_tensors: int  # of the checkpoint
    num_parameters: int
    precision: str
    bytes_to_read: int
    bytes_to_write: int  # the weights
    prefill_bytes: int  # of these, of a second set for many tokens at a time; 0 without one
    prefill_memory_bytes: int  # that a session of it holds, about
    bytes_needed: int  # on disk, everything included
    bytes_free: int
    peak_memory_bytes: int  # predicted, of the exporting process
    threads: int
    adapters: tuple[str, ...] = ()  # merged on the way, as DIR:WEIGHT
    quantized: tuple[str, ...] = ()  # formats that weights had before: what they lost stays lost
    # Predicted, of a dry run: to write it, waiting for the disk not included, and what goes before.
    seconds: float | None = None
    calibration: Forecast | None = None
    notes: tuple[str, ...] = ()  # lines that a person should read


def forecast_text(found: Forecast) -> str:
    """In words."""
    return (
        f"about {duration_text(found.seconds, 1)}, {size_text(found.memory_bytes)} of memory and "
        f"{size_text(found.disk_bytes)} of disk"
    )


def predicted_peak(*models: ir.Model) -> int:
    """Highest resident set, in bytes, while the weights of ``models`` are written.

    To what the process holds now come the results that wait to be written, the pieces that are
    being computed and what computing them takes beside, and parts that wait for the rest of theirs.
    """
    threads = default_threads()
    window: deque[tuple[int, int]] = deque(maxlen=threads + 1)
    most = kept = 0
    for piece in _telling_pieces(models, threads + 1):
        if piece.weight.blob.at_hand:
            kept = max(kept, piece.num_bytes)
            continue
        window.append((piece.num_bytes, piece.weight.blob.scratch))
        results = sum(size for size, _ in window)
        scratch = sum(sorted((size for _, size in window), reverse=True)[:threads])
        most = max(most, results + scratch)
    return max(peak_rss_bytes(), rss_bytes() + most + kept)


def predicted_seconds(models: Sequence[ir.Model], bytes_to_read: int, bytes_to_write: int) -> float:
    """Seconds to pack and hash everything on this machine's cores, measured on a part of it."""
    threads = default_threads()
    count = TIMED_PIECES * threads
    kinds: dict[tuple[str, int], list[Piece]] = {}
    num_bytes: Counter[tuple[str, int]] = Counter()
    for weight in stored_weights(*models):
        if not weight.blob.at_hand and weight.nbytes:
            kind = (weight.dtype.name, weight.row_bytes)
            num_bytes[kind] += weight.nbytes
            samples = kinds.setdefault(kind, [])
            starts = piece_starts(weight)[: count - len(samples)]
            samples += [Piece(weight, start) for start in starts]
    rates: dict[str, float] = {}  # bytes per second by dtype, of the last kind that was timed
    seconds = 0.0
    for kind, sample in sorted(kinds.items(), key=lambda item: item[1][0].num_bytes):
        dtype = kind[0]
        if sample[0].num_bytes <= LARGEST_TIMED or dtype not in rates:
            started = time.perf_counter()
            for _ in computed_ahead(((piece, piece.compute, True) for piece in sample), threads):
                pass
            sampled = sum(piece.num_bytes for piece in sample)
            rates[dtype] = sampled / (time.perf_counter() - started)
        seconds += num_bytes[kind] / rates[dtype]
    started = time.perf_counter()
    hashlib.sha256(bytes(HASHED))
    hashing = (bytes_to_read + bytes_to_write) / HASHED * (time.perf_counter() - started)
    return seconds + hashing / threads


def _telling_pieces(models: Sequence[ir.Model], count: int) -> Iterator[Piece]:
    """Of every weight ``count`` pieces and the last one: those between are like the first."""
    for weight in stored_weights(*models):
        starts = piece_starts(weight)
        for start in (*starts[:count], *starts[count:][-1:]):
            yield Piece(weight, start)


# Checkpoints without weights --------------------------------------------------------------------


def open_headers(path: str | Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """The checkpoint at ``path``, or one that only has a config.json, with made-up numbers.

    Raises CheckpointError as ``open_checkpoint``.
    """
    folder = Path(path)
    refuse_other_folders(folder)
    config_file = folder / "config.json"
    if config_file.is_file() and not any(folder.glob("*.safetensors*")):
        return open_without_weights(folder, tokenizer)
    return _with_numbers(open_checkpoint(path, tokenizer))


def open_without_weights(folder: Path, tokenizer: str | Path | None = None) -> Checkpoint:
    """The checkpoint in ``folder`` by its other files, whatever is there of weights; likewise."""
    checkpoint = _described(folder, folder / "config.json")
    return _with_numbers(replace(checkpoint, tokenizer=given_tokenizer(tokenizer, folder)))


def _with_numbers(checkpoint: Checkpoint) -> Checkpoint:
    """``checkpoint`` with made-up ones."""
    tile = np.random.default_rng(0).standard_normal(PIECE_BYTES // 4, np.float32)
    # What has to be unpacked is read, so that the time for that counts as well.
    tensors = {
        name: tensor
        if tensor.quantized
        else replace(tensor, rows=_made_up(tensor, tile), true_rows=tensor.rows)
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=tensors)


def _made_up(tensor: CheckpointTensor, tile: NDArray[np.float32]) -> Rows:
    def rows(start: int, stop: int) -> NDArray[np.float32]:
        shape = (stop - start, *tensor.shape[1:]) if tensor.shape else ()
        return np.resize(tile, shape)

    return rows


@dataclass(frozen=True)
class _Stored:
    """How config.json says that the weights are stored; newer ones call it ``dtype``."""

    torch_dtype: str | None = None
    dtype: str | None = None


def _described(folder: Path, config_file: Path) -> Checkpoint:
    config = load_config(config_file)
    stored = read_fields(_Stored, config)
    dtype = stored.torch_dtype or stored.dtype or "bfloat16"
    item_bytes = {"float32": 4, "float64": 8}.get(dtype, 2)
    tensors = {
        name: CheckpointTensor(
            name=name,
            shape=shape,
            dtype=dtype,
            file="config.json",
            num_bytes=item_bytes * math.prod(shape),
            rows=lambda start, stop: np.empty(0, np.float32),  # replaced before it is used
        )
        for name, shape in find_architecture(config).tensor_shapes(config).items()
    }
    generation_file = folder / "generation_config.json"
    generation = load_config(generation_file) if generation_file.is_file() else {}
    return Checkpoint(folder, config, tensors, generation, HEADERS_FORMAT, (config_file,))
