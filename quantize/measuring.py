"""Measures statistics: a model runs over windows of text, part by part, each with its sums.

    measured = measure(model, tokens, "work/", {"model": "sha256 …", "calibration": "dreamt"})

After every part what was measured is written, and what crosses into the next: a run that was killed
goes on after the last part that was finished. K is the number of input features of a product.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.errors import NumericsError, RequestError, StorageError
from ..export.external_data import weights_of
from ..export.lock import locked
from ..export.memory import memory_errors
from ..export.output_file import OutputFile
from ..export.placing import sync
from ..export.publishing import check_free_space
from .layerwise import OpenPart, Part, split
from .statistics import (
    FORMAT,
    STATE,
    State,
    Statistics,
    StatisticsError,
    hessian_file,
    stream_file,
)
from .weights import Floats

LOCK = "statistics.lock"
CHUNK_TOKENS = 2048  # run at a time, about: more are no faster

Tokens = NDArray[np.int64]  # (rows, window)
Observer = Callable[[int, int], None]  # parts done, parts in all


def measure(
    model: ir.Model,
    tokens: Tokens,
    folder: str | Path,
    identity: Mapping[str, str],
    observer: Observer | None = None,
    *,
    threads: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Statistics:
    """Runs ``model`` (float32, lazy weights) over ``tokens`` (rows, window), part by part.

    ``folder`` is made, or has what an earlier run of the same ``identity`` left: this one goes on
    there. ``identity`` says in words what model and text these are. ``observer`` is called at the
    beginning and after every part with (parts done, parts in all).

    Raises StatisticsError for a folder of another identity, another process's, or of other files;
    NumericsError, which names the tensor, for NaN or infinity in weights or between them;
    RequestError for tokens that are none; StorageError, ResourceError.
    """
    _check_tokens(model, tokens)
    parts = split(model)
    known = {**identity, "graph": _graph_digest(model), "text": _text_digest(tokens)}
    begun = State(known, tokens.size, tokens.shape[1], len(parts))
    with _work_folder(Path(folder), begun) as work:
        needed = disk_bytes(parts[work.state.finished :], tokens.size)
        check_free_space(work.folder / STATE, needed)
        if observer is not None:
            observer(work.state.finished, len(parts))
        step = max(1, chunk_tokens // tokens.shape[1])
        for number in range(work.state.finished, len(parts)):
            with _storage_errors(work.folder):
                _measure_part(work, parts, number, tokens, step, threads)
            if observer is not None:
                observer(work.state.finished, len(parts))
    return Statistics.open(folder)


def _measure_part(
    work: WorkFolder,
    parts: tuple[Part, ...],
    number: int,
    tokens: Tokens,
    step: int,
    threads: int | None,
) -> None:
    part = parts[number]
    crossing = part.outputs if number + 1 < len(parts) else ()
    entering = work.entering()
    inputs = list(dict.fromkeys(part.products.values()))
    hessians: dict[str, HessianSum] = {}
    with (
        part.open([*crossing, *inputs], threads) as opened,
        memory_errors(f"statistics of {part.name}"),
        work.leaving(crossing, len(tokens)) as leaving,
    ):
        for start in range(0, len(tokens), step):
            rows = slice(start, start + step)
            values = {name: np.array(array[rows]) for name, array in entering.items()}
            found = opened.run(tokens[rows], values)
            for name in inputs:
                if name not in hessians:
                    hessians[name] = HessianSum(found[name].shape[-1])
                hessians[name].add(found[name])
            leaving.add(found)
            _check_finite(opened, found, crossing, hessians)
    work.finish(part, hessians, crossing)


class HessianSum:
    """The sum of x^T x over rows x (K,) of what is added, by blocks."""

    def __init__(self, size: int) -> None:
        # In float64 across blocks, so that their number and order do not show.
        self.total = np.zeros((size, size), np.float64)
        self.count = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Adds all rows of ``values`` (…, K)."""
        rows = values.reshape(-1, values.shape[-1])
        with np.errstate(over="ignore", invalid="ignore"):  # ``finite`` tells
            self.total += rows.T @ rows  # NumPy makes one triangle and mirrors it
        self.count += len(rows)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.total.diagonal()).all())

    def mean(self) -> Floats:
        """(K, K) float32; uses up the sum."""
        np.divide(self.total, self.count, out=self.total)
        return self.total.astype(np.float32)


def _check_finite(
    opened: OpenPart,
    found: Mapping[str, NDArray[Any]],
    crossing: tuple[str, ...],
    sums: Mapping[str, HessianSum],
) -> None:
    """Raises NumericsError that names the first tensor with NaN or infinity."""
    wrong = [name for name, found_sum in sums.items() if not found_sum.finite]
    wrong += [name for name in crossing if not np.isfinite(found[name]).all()]
    if not wrong:
        return
    for weight in opened.part.weights(opened.outputs):
        if not np.isfinite(weight.read()).all():
            raise NumericsError(
                f"{weight.name}: found NaN or infinity among its numbers, expected none; the "
                "checkpoint is damaged - get it again from its source"
            )
    users = [weight for weight, value in opened.part.products.items() if value == wrong[0]]
    where = f"the input of {users[0]}" if users else f"the value {wrong[0]!r}"
    raise NumericsError(
        f"{opened.part.name}: found NaN or infinity in {where}, expected numbers that float32 "
        "holds; the model overflows on this text - quantize it without calibration"
    )


def _check_tokens(model: ir.Model, tokens: Tokens) -> None:
    if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise RequestError(
            f"tokens are {tokens.dtype} {tokens.shape}, expected integers (rows, window); "
            "cut the text into windows first"
        )
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    size = int(logits.shape[-1])  # type: ignore[arg-type]
    if tokens.min() < 0 or tokens.max() >= size:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise RequestError(
            f"found token id {wrong}, expected 0 to {size - 1}; use ids of this model's tokenizer"
        )


def _graph_digest(model: ir.Model) -> str:
    """Of operators, and of names and shapes of the weights: none is read."""
    digest = hashlib.sha256()
    for node in model.graph:
        digest.update(f"{node.op_type} {node.name}\n".encode())
    for weight in weights_of(model):
        digest.update(f"{weight.name} {weight.shape.numpy()}\n".encode())
    return digest.hexdigest()


def _text_digest(tokens: Tokens) -> str:
    data = np.ascontiguousarray(tokens, "<i8")
    return hashlib.sha256(f"{tokens.shape}".encode() + data.tobytes()).hexdigest()


def squares(part: Part) -> list[int]:
    """Numbers in the Hessian of each input."""
    sizes = {part.products[linear.name]: linear.in_features for linear in part.linear}
    return [size**2 for size in sizes.values()]


def disk_bytes(parts: Sequence[Part], num_tokens: int) -> int:
    """Of the Hessians of ``parts``, and of what crosses between two of them, before and after."""
    stored = sum(sum(squares(part)) for part in parts)
    return 2 * stream_bytes(parts, num_tokens) + 4 * stored


def stream_bytes(parts: Sequence[Part], num_tokens: int) -> int:
    """Of what crosses into a part, at most."""
    width = parts[-1].linear[0].in_features if parts else 0
    return 4 * num_tokens * width * max((len(part.inputs) for part in parts), default=0)


# The folder being written -------------------------------------------------------------------------


@contextmanager
def _work_folder(folder: Path, begun: State) -> Iterator[WorkFolder]:
    """Holds ``folder`` for this process, as an earlier run of the same identity left it or new."""

    def taken(holder: str) -> None:
        raise StatisticsError(
            f"{folder}: found {holder} measuring into it, expected nobody; wait until it ends, or "
            "choose another folder"
        )

    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, taken):
        yield WorkFolder(folder, begun)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write ({error.strerror or error}), expected a writable folder with "
            "enough free space; parts that were finished stay - free some space, and the same "
            "call goes on"
        ) from error


class WorkFolder:
    """A folder of statistics under way, and how far it is."""

    def __init__(self, folder: Path, begun: State) -> None:
        self.folder = folder
        self.state = begun
        if (folder / STATE).exists():
            self.state = State.read(folder)
            # What it was told beside what this run is told makes it another, too.
            none = dict.fromkeys(self.state.identity, "none")
            self.state.check_same(folder, {**none, **begun.identity})
        else:
            self._check_empty()
        with _storage_errors(folder):
            self._file = OutputFile(folder / STATE, lambda data: FORMAT.encode() in data[:100])
            self._write(self.state)
            self._remove_streams()

    def entering(self) -> dict[str, Floats]:
        """What crosses into the next part, mapped from disk, (rows, window, …)."""
        files = self._streams(self.state.finished, self.state.stream)
        return {name: np.load(file, mmap_mode="r") for name, file in files.items()}

    @contextmanager
    def leaving(self, names: tuple[str, ...], rows: int) -> Iterator[StreamWriter]:
        """Takes what crosses out of the part under way, some rows at a time."""
        files = self._streams(self.state.finished + 1, names)
        writer = StreamWriter(files, rows)
        try:
            yield writer
        finally:
            writer.close()

    def finish(
        self, part: Part, hessians: dict[str, HessianSum], crossing: tuple[str, ...]
    ) -> None:
        """Writes what was measured of ``part``, which from then on counts as finished."""
        number = self.state.finished
        places = {name: (number, index) for index, name in enumerate(hessians)}
        for name in places:
            self._save(hessian_file(self.folder, *places[name]), hessians.pop(name).mean())
        known = {weight: places[value] for weight, value in part.products.items()}
        self._write(
            replace(
                self.state,
                finished=number + 1,
                stream=crossing,
                hessians={**self.state.hessians, **known},
            )
        )
        self._remove_streams()

    def _save(self, file: Path, array: Floats) -> None:
        np.save(file, array)
        sync(file)

    def _write(self, state: State) -> None:
        self._file.write(state.to_json())
        self.state = state

    def _streams(self, part: int, names: tuple[str, ...]) -> dict[str, Path]:
        return {name: stream_file(self.folder, part, i) for i, name in enumerate(names)}

    def _remove_streams(self) -> None:
        """Of parts other than the next one; what is mapped stays until it is let go."""
        kept = set(self._streams(self.state.finished, self.state.stream).values())
        for file in set(self.folder.glob("stream-*.npy")) - kept:
            with suppress(OSError):  # Windows keeps what is mapped; the next part removes it
                file.unlink()

    def _check_empty(self) -> None:
        names = sorted(os.listdir(self.folder))
        foreign = [name for name in names if name != LOCK and not name.startswith(f".{STATE}.")]
        if foreign:
            raise StatisticsError(
                f"{self.folder}: found {', '.join(foreign[:3])}, expected statistics of an earlier "
                "run or an empty folder; choose another"
            )


class StreamWriter:
    """Writes what crosses a boundary to .npy files, row by row: never through a mapping, since
    that cannot tell of a full disk.
    """

    def __init__(self, files: dict[str, Path], rows: int) -> None:
        self._rows = rows
        self._paths = files
        self._open: dict[str, Any] = {}

    def add(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Appends the next rows (n, window, …) of every file's value."""
        for name, path in self._paths.items():
            array = np.ascontiguousarray(values[name])
            if name not in self._open:
                self._open[name] = open(path, "wb")
                shape = (self._rows, *array.shape[1:])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(self._open[name], header)
            self._open[name].write(array.data)

    def close(self) -> None:
        """Puts all on the disk."""
        for stream in self._open.values():
            with stream:
                stream.flush()
                os.fsync(stream.fileno())
