"""Every shape of attention mask that some runtime feeds means the same rows to the graph.

Everything here feeds a plain ONNX Runtime session by hand, so that nothing is owed to our loop.
Matches reference: every row of a batch equals the same prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from pocketlm.export.folder import DecoderShape, ModelFolder

Ints = NDArray[np.int64]
PROMPTS = [[5, 77, 140, 9, 201, 33, 8], [250, 1, 64, 19], [42]]
CHOSEN = [[11, 12, 13], [290, 3, 150], [7, 7, 99]]  # tokens of three decode steps, per prompt
# Rows of a batch see the same products in another order: some float32 roundings apart.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def graph(tiny_folder: ModelFolder) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        tiny_folder.path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


class RawLoop:
    """Feeds the graph and hands its present back as past; B rows, cache as the graph returns it."""

    def __init__(
        self, graph: onnxruntime.InferenceSession, shape: DecoderShape, rows: int, capacity: int = 0
    ) -> None:
        self.graph = graph
        names = [f"{i}.{kind}" for i in range(shape.num_layers) for kind in ("key", "value")]
        self.past = {
            f"past_key_values.{name}": np.zeros(
                (rows, shape.kv_heads, capacity, shape.head_size), np.float32
            )
            for name in names
        }
        self.outputs = ["logits", *(f"present.{name}" for name in names)]

    def step(self, ids: Any, mask: Any, positions: Any) -> Any:
        """Logits (B, S, V)."""
        feeds: dict[str, Any] = dict(self.past)
        feeds["input_ids"] = np.array(ids, np.int64)
        feeds["attention_mask"] = np.array(mask, np.int64)
        feeds["position_ids"] = np.array(positions, np.int64)
        logits, *present = self.graph.run(self.outputs, feeds)
        self.past = dict(zip(self.past, present, strict=True))
        return logits


@pytest.fixture(scope="module")
def alone(graph: onnxruntime.InferenceSession, tiny_folder: ModelFolder) -> list[Any]:
    """Per prompt, its logits (prompt + decode steps, V) without any padding."""
    results = []
    for prompt, chosen in zip(PROMPTS, CHOSEN, strict=True):
        loop = RawLoop(graph, tiny_folder.shape, 1)
        length = len(prompt)
        parts = [loop.step([prompt], [[1] * length], [range(length)])[0]]
        for token in chosen:
            length += 1
            parts.append(loop.step([[token]], [[1] * length], [[length - 1]])[0])
        results.append(np.concatenate(parts))
    return results


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


# Padding ----------------------------------------------------------------------------------------

LENGTHS = [len(prompt) for prompt in PROMPTS]
WIDTH = max(LENGTHS)


def left_mask(length: int, steps: int) -> list[int]:
    """0 0 0 1 1 1 1 | 1 1: what optimum and transformers.js feed."""
    return [0] * (WIDTH - length) + [1] * (length + steps)


def right_mask(length: int, steps: int) -> list[int]:
    """1 1 1 1 1 1 0 0 0: the row's own tokens, then zeros."""
    return [1] * (length + steps) + [0] * (WIDTH - length)


def holed_mask(length: int, steps: int) -> list[int]:
    """1 1 1 1 0 0 0 | 1 1: what onnxruntime-genai feeds for a prompt padded on the right."""
    return [1] * length + [0] * (WIDTH - length) + [1] * steps


@pytest.mark.parametrize("mask", [left_mask, right_mask, holed_mask])
def test_padded_rows_equal_single_prompts(
    mask: Callable[[int, int], list[int]],
    graph: Any,
    tiny_folder: ModelFolder,
    alone: list[Any],
) -> None:
    loop = RawLoop(graph, tiny_folder.shape, len(PROMPTS))
    left = mask is left_mask

    def padded(row: Sequence[int], filler: int) -> list[int]:
        pads = [filler] * (WIDTH - len(row))
        return [*pads, *row] if left else [*row, *pads]

    masks = [mask(length, 0) for length in LENGTHS]
    positions = [padded(range(length), 0) for length in LENGTHS]
    logits = loop.step([padded(prompt, 299) for prompt in PROMPTS], masks, positions)
    for row, length, expected in zip(logits, LENGTHS, alone, strict=True):
        assert_close(row[-length:] if left else row[:length], expected[:length])
    for step in range(3):
        masks = [mask(length, step + 1) for length in LENGTHS]
        positions = [[length + step] for length in LENGTHS]
        logits = loop.step([[chosen[step]] for chosen in CHOSEN], masks, positions)
        for row, length, expected in zip(logits, LENGTHS, alone, strict=True):
            assert_close(row[0], expected[length + step])


def test_padding_tokens_never_show(graph: Any, tiny_folder: ModelFolder) -> None:
    results = []
    for filler in (0, 123):
        loop = RawLoop(graph, tiny_folder.shape, 1)
        prompt = [[filler] * 3 + PROMPTS[1]]
        first = loop.step(prompt, [left_mask(4, 0)], [[0, 0, 0, 0, 1, 2, 3]])[0, 3:]
        results.append([first, loop.step([[9]], [left_mask(4, 1)], [[4]])[0]])
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_a_static_mask_with_zeros_behind_equals_an_exact_one(
    prompt: int, graph: Any, tiny_folder: ModelFolder, alone: list[Any]
) -> None:
    capacity, length = 32, LENGTHS[prompt]
    loop = RawLoop(graph, tiny_folder.shape, 1, capacity)

    def mask(ones: int) -> list[list[int]]:
        return [[1] * ones + [0] * (capacity - ones)]

    assert_close(
        loop.step([PROMPTS[prompt]], mask(length), [range(length)])[0], alone[prompt][:length]
    )
    for step, token in enumerate(CHOSEN[prompt]):
        found = loop.step([[token]], mask(length + step + 1), [[length + step]])[0]
        assert_close(found[0], alone[prompt][length + step])
    assert {past.shape[2] for past in loop.past.values()} == {capacity}
