"""How far a model folder parts from the model in full precision, in nats per token.

    reference = Reference(model, windows)         # runs the float32 graph once, layer by layer
    reference.divergence(folder)                  # mean KL(reference ‖ folder) over all windows

What crosses into the head is kept (rows, window, D), so that each comparison runs the head alone.
Only one part of the float32 model is in memory at a time. Letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..export.folder import ModelFolder
from ..runtime.session import Session
from .layerwise import Array, OpenPart, Values, split
from .weights import Floats

Windows = NDArray[np.int64]  # (rows, window)
CHUNK_TOKENS = 1024  # run at a time, about
LOGITS_TOKENS = 128  # whose logits are in memory: of a large vocabulary they are what is largest
Progress = Callable[[int, int], object]  # parts or windows done, and in all


def mean_kl(reference: Floats, other: Floats) -> float:
    """Mean over rows of KL(p ‖ q) = Σ p (log p - log q) of logits (R, V), in nats.

    A few rows at a time in float32, which holds shifted logits well; sums are float64.
    """
    total = 0.0
    step = max(1, (1 << 18) // reference.shape[1])
    for start in range(0, len(reference), step):
        p, log_p = _softmax(reference[start : start + step])
        _, log_q = _softmax(other[start : start + step])
        total += float(np.einsum("rv,rv->", p, log_p - log_q, dtype=np.float64))
    return total / len(reference)


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """(p, log p) of rows of logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=-1, keepdims=True)
    p /= total
    shifted -= np.log(total)
    return p, shifted


def chunks(windows: Windows) -> list[slice]:
    """Rows that are run together."""
    step = max(1, CHUNK_TOKENS // windows.shape[1])
    return [slice(start, start + step) for start in range(0, len(windows), step)]


def run_rows(
    part: OpenPart, windows: Windows, values: Values, replaced: Values | None = None
) -> Values:
    """``part`` over all rows, some at a time: what crosses out of it, (rows, window, …) each."""
    found: list[dict[str, Array]] = [
        part.run(windows[rows], {name: array[rows] for name, array in values.items()}, replaced)
        for rows in chunks(windows)
    ]
    return {name: np.concatenate([some[name] for some in found]) for name in found[0]}


class Reference:
    """What a float32 model with lazy weights says of ``windows``."""

    def __init__(
        self, model: ir.Model, windows: Windows, progress: Progress = lambda done, total: None
    ) -> None:
        self.windows = windows
        *parts, self._head = split(model)
        values: Values = {}
        for number, part in enumerate(parts):
            progress(number, len(parts))
            with part.open() as opened:
                values = run_rows(opened, windows, values)
        self._entering = values

    def divergence(self, folder: ModelFolder) -> float:
        """Mean KL of ``folder``, at every position of every window; raises as ``Session``."""
        session = Session(folder)
        total = 0.0
        with self._head.open() as head:
            for row in range(len(self.windows)):
                cache = session.new_cache()
                for start in range(0, self.windows.shape[1], LOGITS_TOKENS):
                    some = np.s_[row : row + 1, start : start + LOGITS_TOKENS]
                    entering = {name: array[some] for name, array in self._entering.items()}
                    (logits,) = head.run(self.windows[some], entering).values()
                    other = session.all_logits(self.windows[some][0], cache)
                    total += mean_kl(logits[0], other) * len(other)
        return max(0.0, total / self.windows.size)  # equal ones differ by a last bit
