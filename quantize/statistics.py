"""What a model's products multiply: statistics of windows of text, kept in a folder.

    measured = Statistics.open("work/")
    measured.hessian("layers.0.mlp.down_proj.weight")      # (K, K) float32

    statistics.json     format, version, identity, tokens, window, what is where, finished parts
    hessian-PPP-N.npy   float32 (K, K): X^T X / tokens, of the N-th input of products in part P
    stream-PPP-N.npy    what crosses into part P, while that is still to be measured

Products with the same input (q, k and v; gate and up) share a file. ``statistics.json`` is replaced
last, after every part: a run that was killed goes on after the last one it finished. Parts are
those of ``layerwise``; only one is in memory at a time. K is a product's number of input features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..export.errors import PocketLMError
from ..export.strict_json import LARGEST_INDEX, load_json_object
from .weights import Floats

FORMAT, VERSION = "pocketlm statistics", 1
STATE = "statistics.json"


class StatisticsError(PocketLMError):
    """A folder of statistics is unfinished or damaged, or of another model or text."""


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

    def to_json(self) -> bytes:
        """As it is stored."""
        stored = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(stored, indent=1).encode() + b"\n"

    def check_same(self, folder: Path, expected: Mapping[str, str]) -> None:
        """StatisticsError if they are of another model or text than ``expected`` says."""
        for name, value in expected.items():
            found = self.identity.get(name, "none")
            if found != value:
                raise StatisticsError(
                    f"{folder}: found statistics of another {name} ({found}), expected {value}; "
                    "choose a new folder, or remove this one"
                )

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
            counts = {name: int(stored[name]) for name in ("tokens", "window", "parts", "finished")}
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
        return None if place is None else _load(hessian_file(self.folder, *place))

    def hessian_id(self, weight: str) -> tuple[int, int] | None:
        """Tells inputs apart: q, k and v of a layer have the same."""
        return self.state.hessians.get(weight)


def _load(file: Path) -> Floats:
    try:
        array: Floats = np.load(file, allow_pickle=False)
        if array.dtype != np.float32 or array.ndim != 2:
            raise ValueError(f"{array.dtype} {array.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise StatisticsError(
            f"{file}: cannot be read ({error}), expected the float32 array that measuring wrote; "
            "remove the folder and measure again"
        ) from error
    return array


def hessian_file(folder: Path, part: int, number: int) -> Path:
    """Where that of the ``number``-th input in a part is."""
    return folder / f"hessian-{part:03}-{number}.npy"


def stream_file(folder: Path, part: int, number: int) -> Path:
    """Where the ``number``-th value that crosses into a part is."""
    return folder / f"stream-{part:03}-{number}.npy"
