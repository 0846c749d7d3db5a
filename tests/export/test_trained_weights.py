"""Weights in the forms that trainers leave: other heads, other names, other number types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    safetensors_bytes,
    write_checkpoint,
)
from llama_checkpoints import llama_config, llama_tensors

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.plan import open_headers
from pocketlm.export.trainer_prefixes import without_prefixes
from pocketlm.export.writing import build_decoder, export_model, plan_export

CONFIG = gpt2_config(vocab_size=300)
TENSORS = gpt2_tensors(CONFIG, seed=3)
TABLE = TENSORS["transformer.wte.weight"]


def initializers(path: Path) -> set[str]:
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    return {tensor.name for tensor in graph.initializer}


@pytest.mark.parametrize("rows", [299, 0])
def test_a_stored_head_that_differs_is_used_and_said(tmp_path: Path, rows: int) -> None:
    head = TABLE.copy()
    head[rows, -1] += 1e-3
    path = write_checkpoint(tmp_path / "in", CONFIG, {**TENSORS, "lm_head.weight": head})
    checkpoint = open_checkpoint(path)
    folder = export_model(checkpoint, tmp_path / "out")
    assert "lm_head.weight" in initializers(folder.path)
    (told,) = plan_export(open_headers(path), tmp_path / "other").notes
    assert told == (
        "model.safetensors: tensor 'lm_head.weight' differs from the embedding that config.json "
        "ties it to (tie_word_embeddings): it is used, as by transformers 5"
    )
    planned = plan_export(open_headers(path), tmp_path / "other")
    assert planned.bytes_to_write == folder.weights_bytes  # told before the weights are read


def test_an_equal_copy_of_a_tied_head_is_left_out_in_silence(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "in", CONFIG, {**TENSORS, "lm_head.weight": TABLE})
    decoder = build_decoder(open_checkpoint(path))
    assert decoder.notes == () and "lm_head.weight" not in decoder.model.graph.initializers


def test_a_stored_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "in", CONFIG, {**TENSORS, "lm_head.weight": TABLE[:7]})
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' has shape \(7, 32\), expected"):
        build_decoder(open_checkpoint(path))


PREFIXES = [
    "_orig_mod.",
    "module.",
    "module._orig_mod.",
    "model.",
    "model.module.",
    "_orig_mod.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prefixes_of_trainers_are_left_out(prefix: str, family: str, tmp_path: Path) -> None:
    config: dict[str, Any] = CONFIG
    tensors: Any = TENSORS
    if family == "llama":
        config = llama_config(vocab_size=300)
        tensors = llama_tensors(config)
    wrapped = {prefix + name: values for name, values in tensors.items()}
    path = write_checkpoint(tmp_path / "in", config, wrapped)
    assert open_checkpoint(path).tensors.keys() == tensors.keys()
    build_decoder(open_checkpoint(path))


def test_a_prefix_in_the_middle_is_one_too_and_names_of_models_stay() -> None:
    names = ["model._orig_mod.layers.0.w", "model._orig_mod.norm.w", "lm_head.weight"]
    assert [*without_prefixes(names).values()] == [
        "model.layers.0.w",
        "model.norm.w",
        "lm_head.weight",
    ]
    own = ["model.layers.0.w", "model.embed_tokens.weight", "model.language_model.x"]
    assert [*without_prefixes(own).values()] == own
    assert without_prefixes([]) == {}


def test_the_same_tensor_with_and_without_a_prefix_is_refused(tmp_path: Path) -> None:
    both = {**TENSORS, "module.transformer.wte.weight": TABLE}
    path = write_checkpoint(tmp_path / "in", CONFIG, both)
    with pytest.raises(CheckpointError, match="are both 'transformer.wte.weight' without the"):
        open_checkpoint(path)


def test_float64_is_read_and_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "in", CONFIG, TENSORS)
    file = path / "model.safetensors"
    file.write_bytes(safetensors_bytes(TENSORS, "F64"))
    checkpoint = open_checkpoint(path)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"float64"}
    for name, values in TENSORS.items():
        assert np.array_equal(checkpoint.tensors[name].read(), values)
    export_model(checkpoint, tmp_path / "out")
    huge = {name: values.astype(np.float64) * 1e300 for name, values in TENSORS.items()}
    file.write_bytes(safetensors_bytes(huge, "F64"))
    with pytest.raises(CheckpointError, match="holds -?inf, expected finite numbers"):
        open_checkpoint(path).tensors["transformer.wte.weight"].read()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_git_lfs_pointer_is_named(name: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "in", CONFIG, TENSORS)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (path / name).write_bytes(pointer)
    with pytest.raises(CheckpointError, match=f"'{name}' is a Git LFS pointer.*run git lfs pull"):
        open_checkpoint(path)
