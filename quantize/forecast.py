"""What calibrating will take, before it begins: from shapes, and some timed products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..export.external_data import weights_of
from ..export.graph import Weight
from ..export.memory import rss_bytes
from ..export.plan import Forecast
from ..export.threads import default_threads
from .layerwise import split
from .measuring import CHUNK_TOKENS, disk_bytes, squares, stream_bytes
from .precisions import UNSEEN, Calibration

# As found with GPT-2 124M and Llama 1B shapes: what a run takes beside its products (attention,
# norms, activations), how many of the widest values it holds, and what BLAS and ONNX Runtime take
# for themselves, in bytes.
RUN_OVERHEAD = 1.3
VALUES_HELD = 8
ENGINE_BYTES = 128 << 20
TIMED_SIZE = 1024
# Seconds that dreaming, measuring and rounding take together, for each of measuring.
SHARE = 1.5


def forecast(model: ir.Model, calibration: Calibration) -> Forecast:
    """What calibrating ``model`` and rounding it with that takes, measured on small parts of it."""
    measuring = predict(model, calibration.tokens + UNSEEN)
    seconds, most = SHARE * measuring.seconds, calibration.most_seconds
    return replace(measuring, seconds=seconds, left_out=most is not None and seconds > most)


def predict(model: ir.Model, num_tokens: int) -> Forecast:
    """What ``measure`` of ``model`` over so many tokens will take, from its shapes alone.

    Times some small products and the reading of some rows, which takes a fraction of a second.
    """
    parts = split(model)
    product_rate, square_rate = _rates()
    reading_rate = _reading_rate(parts[1].weights())
    seconds, memory = 0.0, 0
    for part in parts:
        crossing = () if part is parts[-1] else part.outputs
        weights = part.weights([*crossing, *part.products.values()])
        run = [linear for linear in part.linear if linear.weight in weights]
        products = sum(linear.in_features * linear.out_features for linear in run)
        numbers = squares(part)
        seconds += 2 * num_tokens * products / product_rate
        seconds += num_tokens * sum(numbers) / square_rate
        num_bytes = sum(weight.nbytes for weight in weights)
        seconds += num_bytes / reading_rate
        # A sum is in float64; beside them all is the product of one block, or what is stored.
        sums = 8 * sum(numbers) + 4 * max(numbers, default=0)
        widest = max((max(linear.in_features, linear.out_features) for linear in run), default=0)
        values = VALUES_HELD * 4 * CHUNK_TOKENS * widest
        memory = max(memory, num_bytes + sums + values)
    # What crosses into a part is mapped, and counts as resident though it can be dropped.
    memory += stream_bytes(parts, num_tokens)
    # Then the rounded model, in 8 bits at most, is compared with the head's float32 logits.
    rounded = sum(weight.nbytes for weight in weights_of(model)) // 4
    head = sum(weight.nbytes for weight in parts[-1].weights())
    memory = rss_bytes() + ENGINE_BYTES + max(memory, rounded + head)
    return Forecast(seconds, memory, disk_bytes(parts, num_tokens))


def _rates() -> tuple[float, float]:
    """Operations per second of x · W, two for each number of x and column of W, and of x^T · x,
    one for each number and column.
    """
    x = np.ones((512, TIMED_SIZE), np.float32)
    weight = np.ones((TIMED_SIZE, TIMED_SIZE), np.float32)
    operations = len(x) * TIMED_SIZE**2
    threads = default_threads()  # as many as NumPy's products take
    return (
        2 * operations / (RUN_OVERHEAD * _seconds(lambda: x @ weight, threads)),
        operations / _seconds(lambda: x.T @ x, threads),
    )


def _reading_rate(weights: list[Weight]) -> float:
    """Bytes per second, of the first rows of the smallest matrix; the others are read alike."""
    matrices = [weight for weight in weights if len(weight.shape) > 1]
    smallest = min(matrices, key=lambda weight: weight.nbytes)
    rows = min(smallest.step, smallest.num_rows)
    return rows * smallest.row_bytes / _seconds(lambda: smallest.rows(0, rows))


def _seconds(call: Callable[[], object], threads: int = 1, times: int = 9) -> float:
    """Of one call, as the processor counts them: what other processes take is not in it."""
    call()  # the first pays for what is set up
    started = time.process_time()
    for _ in range(times):
        call()
    # Some systems count in steps of 16 ms.
    return max(time.process_time() - started, 1e-6) / times / threads
