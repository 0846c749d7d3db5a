"""GPT-2's graph as other runtimes use it: a raw session, padded batches, a past that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from numpy.typing import NDArray
from reference.gpt2 import forward

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.writing import export_model

Array = NDArray[Any]

CONFIGS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "activation_function": "relu"},
    "head size 64": {"n_embd": 128, "n_head": 2},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7, 93]


@dataclass(frozen=True)
class Exported:
    """A model folder's graph file and the twin's view of its source."""

    graph: Path
    config: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]]

    def twin(self, ids: Sequence[int]) -> Array:
        return forward(self.config, self.tensors, ids)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Exports one of ``CONFIGS`` on first use."""
    done: dict[str, Exported] = {}

    def once(name: str) -> Exported:
        if name not in done:
            config = gpt2_config(**CONFIGS[name])
            # Large weights: with small ones a token hardly notices the others, padding included.
            tensors = {
                key: values * 4 if values.ndim == 2 else values
                for key, values in gpt2_tensors(config).items()
            }
            folder = tmp_path_factory.mktemp("batches")
            checkpoint = open_checkpoint(write_checkpoint(folder / "in", config, tensors))
            graph = export_model(checkpoint, folder / "out").path / "model.onnx"
            done[name] = Exported(graph, config, tensors)
        return done[name]

    return once


class GrowingPast:
    """A raw session for a batch; the present of each step becomes the past of the next."""

    def __init__(self, exported: Exported, batch_size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            exported.graph, options, providers=["CPUExecutionProvider"]
        )
        heads = exported.config["n_head"]
        empty = np.zeros((batch_size, heads, 0, exported.config["n_embd"] // heads), np.float32)
        names = [value.name for value in self.session.get_inputs()]
        self.past = {name: empty for name in names if name.startswith("past_key_values.")}

    def run(self, ids: Array, mask: Array, positions: Array, **more: Array) -> Array:
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits, *present = self.session.run(None, {**feed, **self.past, **more})
        self.past = dict(zip(self.past, present, strict=True))
        found: Array = logits
        return found


def assert_close(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_logits_are_the_first_output_and_the_past_follows_in_order(
    export: Callable[[str], Exported],
) -> None:
    """Callers that take outputs by position get the logits from ``run(None, ...)[0]``."""
    session = GrowingPast(export("tied"), 1).session
    layers = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert [value.name for value in session.get_outputs()] == [
        "logits",
        *[f"present.{layer}" for layer in layers],
    ]
    assert [value.name for value in session.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *[f"past_key_values.{layer}" for layer in layers],
    ]
    assert [value.name for value in session.get_overridable_initializers()] == [
        "num_logits_to_keep"
    ]


@pytest.mark.parametrize("keep, rows", [(None, 14), (0, 14), (1, 1), (3, 3), (14, 14)])
def test_num_logits_to_keep_is_optional(
    keep: int | None, rows: int, export: Callable[[str], Exported]
) -> None:
    """Not fed or 0 means all positions, n the last n."""
    exported = export("tied")
    ids = np.array([PROMPT])
    more = {} if keep is None else {"num_logits_to_keep": np.array(keep)}
    logits = GrowingPast(exported, 1).run(ids, np.ones_like(ids), np.arange(14)[None], **more)
    assert_close(logits[0], exported.twin(PROMPT)[-rows:])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_logits_of_each_prompt(
    side: str, name: str, export: Callable[[str], Exported]
) -> None:
    """Right padding leaves holes in the mask from the first decode step on: 1 1 1 0 0 1."""
    exported = export(name)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6], [50]]
    following = np.array([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]])
    width = max(map(len, prompts))
    ids, mask = np.full((3, width), 7), np.zeros((3, width), np.int64)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt) if side == "left" else 0
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = 1
    past = GrowingPast(exported, 3)
    logits = past.run(ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0))
    for row, prompt in enumerate(prompts):
        assert_close(logits[row][mask[row] == 1], exported.twin(prompt))
    for step in range(following.shape[1]):
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        positions = mask.sum(axis=1, keepdims=True) - 1
        logits = past.run(following[:, step : step + 1], mask, positions)
        for row, prompt in enumerate(prompts):
            so_far = [*prompt, *following[row, : step + 1]]
            assert_close(logits[row, 0], exported.twin(so_far)[-1])


def test_a_fixed_capacity_with_a_mask_that_ends_in_zeros(
    export: Callable[[str], Exported],
) -> None:
    """As loops bind it that share one buffer between past and present and never resize it."""
    exported = export("tied")
    session = GrowingPast(exported, 1).session
    capacity = 24
    binding = session.io_binding()
    buffers = {
        f"{i}.{kind}": np.empty((1, 4, capacity, 8), np.float32)
        for i in range(2)
        for kind in ("key", "value")
    }
    for name, buffer in buffers.items():
        place = (buffer.shape, buffer.ctypes.data)
        binding.bind_input(f"past_key_values.{name}", "cpu", 0, np.float32, *place)
        binding.bind_output(f"present.{name}", "cpu", 0, np.float32, *place)
    mask = np.zeros((1, capacity), np.int64)
    rows = []
    for start, end in [(0, 9), (9, 10), (10, 13), (13, 14)]:
        mask[0, :end] = 1
        binding.bind_cpu_input("input_ids", np.array([PROMPT[start:end]]))
        binding.bind_cpu_input("position_ids", np.arange(start, end)[None])
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_output("logits")  # anew: its length changes
        session.run_with_iobinding(binding)
        rows.append(binding.get_outputs()[-1].numpy()[0])
    assert_close(np.concatenate(rows), exported.twin(PROMPT))


MEANINGFUL: list[dict[str, Any]] = [
    {"activation_function": "gelu"},
    {"activation_function": "relu"},
    {"scale_attn_weights": False},
    {"layer_norm_epsilon": 1e-3},
]


@pytest.mark.parametrize("changed", MEANINGFUL, ids=str)
def test_a_graph_that_ignored_a_field_would_be_noticed(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    """With weights this steep even the two kinds of gelu, 5e-4 apart at most, show."""
    config = gpt2_config() | changed
    tensors = {
        name: values * 10 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config).items()
    }
    write_checkpoint(tmp_path / "in", config, tensors)
    graph = export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out").path / "model.onnx"
    ids = np.array([PROMPT])
    past = GrowingPast(Exported(graph, config, tensors), 1)
    found = past.run(ids, np.ones_like(ids), np.arange(len(PROMPT))[None])[0]
    expected = forward(config, tensors, PROMPT)
    assert_close(found, expected)
    ignored = forward(gpt2_config(), tensors, PROMPT)
    assert np.abs(ignored - expected).max() > 2e-4 * np.abs(expected).max()
