"""What a model's products multiply: measured layer by layer over windows of text, kept in a folder.

    measured = measure(model, tokens, "work/", {"model": "sha256 …", "text": "dreamt, seed 0"})
    measured.hessian("layers.0.mlp.down_proj.weight")      # (K, K) float32

    statistics.json     format, version, identity, tokens, window, what is where, finished parts
    hessian-PPP-N.npy   float32 (K, K): X^T X / tokens, of the N-th input of products in part P
    cache-LLL.npy       float32 (2, 3, K·E): of the layer's keys and values as they are cached, the
                        largest magnitude of each channel, its 99.9 % quantile and its mean square
    stream-PPP-N.npy    what crosses into part P, while that is still to be measured

Products with the same input (q, k and v; gate and up) share a file. ``statistics.json`` is replaced
last, after every part: a run that was killed goes on after the last one it finished. Parts are
those of ``layerwise``; only one is in memory at a time. Letters: K input features of a product,
and, of the cache, heads K and head size E.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.errors import NumericsError, PocketLMError, RequestError, StorageError
from ..export.external_data import weights_of
from ..export.graph import Weight
from ..export.lock import locked
from ..export.memory import memory_errors, rss_bytes
from ..export.output_file import OutputFile
from ..export.placing import sync
from ..export.publishing import check_free_space
from ..export.strict_json import LARGEST_INDEX, load_json_object
from .layerwise import OpenPart, Part, split
from .weights import Floats

FORMAT, VERSION = "pocketlm statistics", 1
STATE, LOCK = "statistics.json", "statistics.lock"
KINDS = ("key", "value")
CHUNK_TOKENS = 2048  # run at a time, about: more are no faster
QUANTILE = 0.999  # of a cached channel's magnitudes
INT8_LARGEST = 127
# For the forecast, as found with GPT-2 124M and Llama 1B shapes: what a run takes beside its
# products (attention, norms, activations), how many of the widest values it holds, and what BLAS
# and ONNX Runtime take for themselves, in bytes.
RUN_OVERHEAD = 1.3
VALUES_HELD = 8
ENGINE_BYTES = 128 << 20
TIMED_SIZE = 1024

Tokens = NDArray[np.int64]  # (rows, window)
Observer = Callable[[int, int], None]  # parts done, parts in all


class StatisticsError(PocketLMError):
    """A folder of statistics is unfinished or damaged, or of another model or text."""


@dataclass(frozen=True)
class CacheRange:
    """Magnitudes of each channel of a layer's cached keys or values: (K·E,) float32 each."""

    largest: Floats
    quantile: Floats  # 99.9 %
    mean_square: Floats


@dataclass(frozen=True)
class State:
    """statistics.json."""

    identity: dict[str, str]
    tokens: int
    window: int
    parts: int
    finished: int = 0
    stream: tuple[str, ...] = ()  # names of the values that cross into the next part
    hessians: dict[str, tuple[int, int]] = field(default_factory=dict)  # weight -> file P, N
    layers: int = 0  # whose cache was measured

    def to_json(self) -> bytes:
        """As it is stored."""
        stored = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(stored, indent=1).encode() + b"\n"

    @staticmethod
    def read(folder: Path) -> State:
        """Reads the folder's; StatisticsError says what is wrong with it."""
        file = folder / STATE
        stored = load_json_object(file, LARGEST_INDEX, StatisticsError)
        found = (stored.pop("format", None), stored.pop("version", None))
        if found != (FORMAT, VERSION):
            raise StatisticsError(
                f"{file}: found format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} "
                f"version {VERSION}; measure again into a new folder"
            )
        try:
            hessians = {str(name): (int(p), int(n)) for name, (p, n) in stored["hessians"].items()}
            identity = {str(name): str(value) for name, value in stored["identity"].items()}
            stream = tuple(str(name) for name in stored["stream"])
            counts = {
                name: int(stored[name])
                for name in ("tokens", "window", "parts", "finished", "layers")
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StatisticsError(
                f"{file}: found no complete record ({error}), expected what measuring writes; "
                "the file was changed - remove the folder and measure again"
            ) from error
        return State(identity=identity, stream=stream, hessians=hessians, **counts)


@dataclass(frozen=True)
class Statistics:
    """A finished folder; arrays are read when asked for, and not kept."""

    folder: Path
    state: State

    @staticmethod
    def open(path: str | Path) -> Statistics:
        """Opens a folder that ``measure`` wrote; StatisticsError for another, or an unfinished."""
        folder = Path(path)
        if not (folder / STATE).is_file():
            raise StatisticsError(
                f"{folder}: found no {STATE}, expected a folder of statistics; measure the model "
                "first"
            )
        state = State.read(folder)
        if state.finished < state.parts:
            raise StatisticsError(
                f"{folder}: found {state.finished} of {state.parts} parts of the model measured, "
                "expected all; run what measured them again, it goes on from there"
            )
        return Statistics(folder, state)

    @property
    def identity(self) -> dict[str, str]:
        """What they are of: what ``measure`` was told, and "graph" and "text" by digest."""
        return self.state.identity

    @property
    def tokens(self) -> int:
        return self.state.tokens

    @property
    def window(self) -> int:
        return self.state.window

    @property
    def weights(self) -> list[str]:
        """Names of the weights whose products were measured."""
        return list(self.state.hessians)

    def hessian(self, weight: str) -> Floats | None:
        """X^T X / tokens of the inputs of a product with ``weight``, (K, K); None if there is none.

        Weights with the same ``hessian_id`` have the same. Raises StatisticsError for a damaged
        file.
        """
        place = self.state.hessians.get(weight)
        return None if place is None else _load(_hessian_file(self.folder, *place), ndim=2)

    def hessian_id(self, weight: str) -> tuple[int, int] | None:
        """Tells inputs apart: q, k and v of a layer have the same."""
        return self.state.hessians.get(weight)

    def cache_ranges(self) -> dict[int, tuple[CacheRange, CacheRange]]:
        """Keys' and values' of every layer."""
        found = {}
        for layer in range(self.state.layers):
            keys, values = _load(_cache_file(self.folder, layer), ndim=3)
            found[layer] = (CacheRange(*keys), CacheRange(*values))
        return found

    def kv_scales(self, headroom: float = 1.0) -> dict[int, tuple[Floats, Floats]]:
        """{layer: scales of keys and of values}, (K·E,) each, for an int8 cache.

        127 steps reach ``headroom`` times the largest magnitude that was seen in a channel.
        """
        return {
            layer: (_scales(keys, headroom), _scales(values, headroom))
            for layer, (keys, values) in self.cache_ranges().items()
        }


def _scales(found: CacheRange, headroom: float) -> Floats:
    # A channel that is always 0 gets a step, too: the kernel divides by it.
    least = np.finfo(np.float32).tiny * INT8_LARGEST
    reached: Floats = np.maximum(np.float32(headroom) * found.largest, least)
    return reached / np.float32(INT8_LARGEST)


def _load(file: Path, ndim: int) -> Floats:
    try:
        array: Floats = np.load(file, allow_pickle=False)
        if array.dtype != np.float32 or array.ndim != ndim:
            raise ValueError(f"{array.dtype} {array.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise StatisticsError(
            f"{file}: cannot be read ({error}), expected the float32 array that measuring wrote; "
            "remove the folder and measure again"
        ) from error
    return array


def _hessian_file(folder: Path, part: int, number: int) -> Path:
    return folder / f"hessian-{part:03}-{number}.npy"


def _cache_file(folder: Path, layer: int) -> Path:
    return folder / f"cache-{layer:03}.npy"


def _stream_file(folder: Path, part: int, number: int) -> Path:
    return folder / f"stream-{part:03}-{number}.npy"


# Measuring ----------------------------------------------------------------------------------------


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
        needed = _disk_bytes(parts[work.state.finished :], tokens.size)
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
    ranges = [RangeSum(tokens.size) for _ in part.cache]
    with (
        part.open([*crossing, *inputs, *part.cache], threads) as opened,
        memory_errors(f"statistics of {part.name}"),
        work.leaving(crossing, len(tokens)) as leaving,
    ):
        for start in range(0, len(tokens), step):
            rows = slice(start, start + step)
            values = {name: np.array(array[rows]) for name, array in entering.items()}
            found = opened.run(tokens[rows], values)
            for name in inputs:
                size = found[name].shape[-1]
                hessians.setdefault(name, HessianSum(size)).add(found[name])
            for name, ranged in zip(part.cache, ranges, strict=True):
                ranged.add(found[name])
            leaving.add(found)
            sums: dict[str, HessianSum | RangeSum] = {**hessians}
            sums.update(zip(part.cache, ranges, strict=True))
            _check_finite(opened, found, crossing, sums)
    work.finish(part, hessians, ranges, crossing)


class HessianSum:
    """The sum of x^T x over rows x (K,) of what is added, by blocks."""

    def __init__(self, size: int) -> None:
        # In float64 across blocks, so that their number and order do not show.
        self.total = np.zeros((size, size), np.float64)
        self.count = 0

    def add(self, values: NDArray[np.float32]) -> None:
        """Adds all rows of ``values`` (…, K)."""
        rows = values.reshape(-1, values.shape[-1])
        self.total += rows.T @ rows  # NumPy makes one triangle and mirrors it
        self.count += len(rows)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.total.diagonal()).all())

    def mean(self) -> Floats:
        """(K, K) float32; uses up the sum."""
        np.divide(self.total, self.count, out=self.total)
        return self.total.astype(np.float32)


class RangeSum:
    """Magnitudes of the channels of cached rows: the largest, a quantile and the mean square."""

    def __init__(self, tokens: int) -> None:
        # The quantile is the smallest of so many largest, whatever the order they came in.
        self._kept = int(tokens * (1 - QUANTILE)) + 1
        self._largest: NDArray[np.float32] | None = None  # (kept, K·E)
        self._squares: NDArray[np.float64] | float = 0.0
        self._count = 0

    def add(self, cached: NDArray[np.float32]) -> None:
        """Adds rows (B, K, S, E)."""
        rows = np.abs(cached.transpose(0, 2, 1, 3).reshape(-1, cached.shape[1] * cached.shape[3]))
        self._squares = self._squares + np.einsum("nk,nk->k", rows, rows, dtype=np.float64)
        self._count += len(rows)
        known = rows if self._largest is None else np.concatenate([self._largest, rows])
        kept = min(self._kept, len(known))
        self._largest = np.partition(known, len(known) - kept, axis=0)[-kept:]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self._squares).all())

    def result(self) -> Floats:
        """(3, K·E): the fields of ``CacheRange``."""
        assert self._largest is not None
        mean = np.asarray(self._squares) / self._count
        found = [self._largest.max(axis=0), self._largest.min(axis=0), mean]
        return np.stack(found).astype(np.float32)


def _check_finite(
    opened: OpenPart,
    found: Mapping[str, NDArray[Any]],
    crossing: tuple[str, ...],
    sums: Mapping[str, HessianSum | RangeSum],
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
            self._check_same(begun)
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
        self,
        part: Part,
        hessians: dict[str, HessianSum],
        ranges: list[RangeSum],
        crossing: tuple[str, ...],
    ) -> None:
        """Writes what was measured of ``part``, which from then on counts as finished."""
        number = self.state.finished
        places = {name: (number, index) for index, name in enumerate(hessians)}
        for name in places:
            self._save(_hessian_file(self.folder, *places[name]), hessians.pop(name).mean())
        layers = self.state.layers
        if ranges:
            self._save(_cache_file(self.folder, layers), np.stack([r.result() for r in ranges]))
        known = {weight: places[value] for weight, value in part.products.items()}
        self._write(
            replace(
                self.state,
                finished=number + 1,
                stream=crossing,
                hessians={**self.state.hessians, **known},
                layers=layers + bool(ranges),
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
        return {name: _stream_file(self.folder, part, i) for i, name in enumerate(names)}

    def _remove_streams(self) -> None:
        """Of parts other than the next one; what is mapped stays until it is let go."""
        kept = set(self._streams(self.state.finished, self.state.stream).values())
        for file in set(self.folder.glob("stream-*.npy")) - kept:
            with suppress(OSError):  # Windows keeps what is mapped; the next part removes it
                file.unlink()

    def _check_same(self, begun: State) -> None:
        found, expected = self.state.identity, begun.identity
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                raise StatisticsError(
                    f"{self.folder}: found statistics of another {name} "
                    f"({found.get(name, 'none')}), expected {expected.get(name, 'none')}; choose "
                    "a new folder, or remove this one"
                )

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


# Before it begins ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forecast:
    """What measuring will take; waiting for the disk is not in the seconds."""

    seconds: float
    memory_bytes: int  # highest resident set of this process
    disk_bytes: int  # at most, in the folder


def predict(model: ir.Model, num_tokens: int) -> Forecast:
    """What ``measure`` of ``model`` over so many tokens will take, from its shapes alone.

    Times some small products and the reading of some rows, which takes a fraction of a second.
    """
    parts = split(model)
    product_rate, square_rate = _rates()
    seconds, memory = 0.0, 0
    for part in parts:
        crossing = () if part is parts[-1] else part.outputs
        weights = part.weights([*crossing, *part.products.values(), *part.cache])
        run = [linear for linear in part.linear if linear.weight in weights]
        products = sum(linear.in_features * linear.out_features for linear in run)
        squares = _squares(part)
        seconds += 2 * num_tokens * products / product_rate
        seconds += num_tokens * sum(squares) / square_rate
        seconds += _reading_seconds(weights)
        # A sum is in float64; beside them all is the product of one block, or what is stored.
        sums = 8 * sum(squares) + 4 * max(squares, default=0)
        widest = max((max(linear.in_features, linear.out_features) for linear in run), default=0)
        values = VALUES_HELD * 4 * CHUNK_TOKENS * widest
        memory = max(memory, sum(weight.nbytes for weight in weights) + sums + values)
    # What crosses into a part is mapped, and counts as resident though it can be dropped.
    memory += rss_bytes() + ENGINE_BYTES + _stream_bytes(parts, num_tokens)
    return Forecast(seconds, memory, _disk_bytes(parts, num_tokens))


def _squares(part: Part) -> list[int]:
    """Numbers in the Hessian of each input."""
    sizes = {part.products[linear.name]: linear.in_features for linear in part.linear}
    return [size**2 for size in sizes.values()]


def _disk_bytes(parts: Sequence[Part], num_tokens: int) -> int:
    """Of the Hessians of ``parts``, and of what crosses between two of them, before and after."""
    squares = sum(sum(_squares(part)) for part in parts)
    return 2 * _stream_bytes(parts, num_tokens) + 4 * squares


def _stream_bytes(parts: Sequence[Part], num_tokens: int) -> int:
    """Of what crosses into a part, at most."""
    width = parts[-1].linear[0].in_features if parts else 0
    return 4 * num_tokens * width * max((len(part.inputs) for part in parts), default=0)


def _rates() -> tuple[float, float]:
    """Operations per second of x · W, two for each number of x and column of W, and of x^T · x,
    one for each number and column.
    """
    x = np.ones((512, TIMED_SIZE), np.float32)
    weight = np.ones((TIMED_SIZE, TIMED_SIZE), np.float32)
    operations = len(x) * TIMED_SIZE**2
    return (
        2 * operations / (RUN_OVERHEAD * _seconds(lambda: x @ weight)),
        operations / _seconds(lambda: x.T @ x),
    )


def _reading_seconds(weights: list[Weight]) -> float:
    """To read all of them: as the first rows of the largest, of those that are matrices."""
    matrices = [weight for weight in weights if len(weight.shape) > 1]
    if not matrices:
        return 0.0
    largest = max(matrices, key=lambda weight: weight.nbytes)
    rows = min(largest.step, largest.num_rows)
    seconds = _seconds(lambda: largest.rows(0, rows), times=1)
    return seconds * sum(weight.nbytes for weight in weights) / (rows * largest.row_bytes)


def _seconds(call: Callable[[], object], times: int = 3) -> float:
    """The quickest of some calls."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)
