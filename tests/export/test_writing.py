"""The verb export: the tokenizer has to fit, bytes are reproducible, tensors pass one at a time."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_files import (
    gpt2_config,
    gpt2_tensors,
    write_checkpoint,
    write_llmc,
    write_tokenizer,
)
from numpy.typing import NDArray

import pocketlm
from pocketlm.export.checkpoint import CheckpointTensor, open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.observer import Observer
from pocketlm.export.plan import ExportPlan
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of

# Tokenizer --------------------------------------------------------------------------------------


def test_without_a_tokenizer_nothing_is_exported(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in", tokenizer=False)
    with pytest.raises(CheckpointError, match=r"no tokenizer.*--tokenizer FOLDER"):
        export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "vocab_size, tokens, fits",
    [(97, 97, True), (97, 98, True), (97, 99, False), (97, 60, True), (1300, 270, True)],
)
def test_a_tokenizer_may_have_any_number_of_tokens_less_and_added_ones_more(
    vocab_size: int, tokens: int, fits: bool, tmp_path: Path
) -> None:
    """Models pad their vocabulary. The last token of these tokenizers is an added one."""
    write_checkpoint(tmp_path / "in", gpt2_config(vocab_size=vocab_size))
    write_tokenizer(tmp_path / "in", tokens)
    checkpoint = open_checkpoint(tmp_path / "in")
    if fits:
        export_model(checkpoint, tmp_path / "out")
        return
    with pytest.raises(CheckpointError, match=f"found {tokens} tokens, expected at most"):
        export_model(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": None},
        {"model": {"vocab": 5}},
        {"model": {"vocab": {"a": "b"}}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": {"a": [1]}}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": [{}]},
        {"model": {"vocab": {"a": 0}}, "added_tokens": ["b"]},
        {"model": {"vocab": {"a": 0}}, "added_tokens": {"b": 1}},
        {"model": {"vocab": {"a": 0}}, "added_tokens": 7},
    ],
    ids=json.dumps,
)
def test_a_damaged_tokenizer_is_refused_by_name(content: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: found "):
        export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize("value", ["<|end|>", 1.5, True, {}, [1, "x"], [[1]]], ids=str)
@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_begin_or_end_that_is_no_token_id_is_refused(
    file: str, name: str, value: Any, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "in")
    content = gpt2_config() if file == "config.json" else {}
    (tmp_path / "in" / file).write_text(json.dumps(content | {name: value}))
    with pytest.raises(CheckpointError, match=f"^{file}: {name} is .*, expected a token id"):
        export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out")


@pytest.mark.parametrize(
    "value, end_ids", [(None, set()), ([], set()), (5, {5}), ([5], {5}), ([5, 6], {5, 6})], ids=str
)
def test_there_may_be_no_end_token_one_or_several(
    value: Any, end_ids: set[int], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "in", gpt2_config() | {"bos_token_id": None, "eos_token_id": value})
    folder = export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out")
    assert pocketlm.Model(folder, threads=1).end_ids == end_ids


# Bytes and memory -------------------------------------------------------------------------------


def contents(folder: ModelFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


def test_exporting_twice_gives_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, two = (
        contents(export_model(open_checkpoint(tiny_checkpoint), tmp_path / name)) for name in "ab"
    )
    assert one == two


def test_llmc_and_safetensors_give_the_same_folder_but_for_the_source(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300)
    tensors = gpt2_tensors(config)
    file = write_llmc(tmp_path / "model.bin", config, tensors)
    write_tokenizer(tmp_path / "tokenizer", 300)
    # The other one has its class from config.json.
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer"})
    )
    llmc = open_checkpoint(file, tmp_path / "tokenizer")
    write_checkpoint(tmp_path / "in", llmc.config, tensors)
    folders = [
        contents(export_model(checkpoint, tmp_path / checkpoint.format))
        for checkpoint in (llmc, open_checkpoint(tmp_path / "in"))
    ]
    manifests = [json.loads(files.pop("pocketlm.json")) for files in folders]
    assert folders[0] == folders[1]
    assert [manifest.pop("source")["format"] for manifest in manifests] == ["llm.c", "safetensors"]
    assert len({manifest.pop("sha256") for manifest in manifests}) == 2
    assert manifests[0] == manifests[1]


def test_a_tied_head_stored_a_second_time_is_left_out(tmp_path: Path) -> None:
    tensors = gpt2_tensors(gpt2_config())
    num_parameters = sum(values.size for values in tensors.values())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    write_checkpoint(tmp_path / "in", tensors=tensors)
    folder = export_model(open_checkpoint(tmp_path / "in"), tmp_path / "out")
    graph = onnx.load(folder.path / "model.onnx", load_external_data=False).graph
    assert "lm_head.weight" not in {tensor.name for tensor in graph.initializer}
    assert folder.manifest.num_parameters == num_parameters


def test_the_plan_is_known_before_the_first_tensor_is_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint)
    events: list[str] = []
    plans: list[ExportPlan] = []

    def watched(tensor: CheckpointTensor) -> CheckpointTensor:
        def rows(start: int, stop: int) -> NDArray[np.float32]:
            events.append("read")
            return tensor.rows(start, stop)

        return replace(tensor, rows=rows)

    def on_plan(plan: ExportPlan) -> None:
        events.append("plan")
        plans.append(plan)

    tensors = {name: watched(tensor) for name, tensor in checkpoint.tensors.items()}
    observer = Observer(
        plan=on_plan, progress=lambda done, total: events.append(f"{done} of {total}")
    )
    watched_checkpoint = replace(checkpoint, tensors=tensors)
    folder = export_model(watched_checkpoint, tmp_path / "out", observer=observer)
    assert events[:2] == ["plan", "read"]
    assert events.count("read") == len(tensors)
    assert events[-1] == f"{folder.weights_bytes} of {folder.weights_bytes}"
    assert plans[0].bytes_to_write == folder.weights_bytes
    assert plans[0].num_parameters == folder.manifest.num_parameters
    assert plans[0].bytes_to_read == sum(tensor.num_bytes for tensor in tensors.values())


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_export_holds_a_few_pieces_of_the_weights_at_a_time(
    precision: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.export.external_data.default_threads", lambda: 2)
    checkpoint = open_checkpoint(tiny_checkpoint)
    seen: list[weakref.ref[NDArray[np.float32]]] = []
    most = 0

    def watched(tensor: CheckpointTensor) -> CheckpointTensor:
        def rows(start: int, stop: int) -> NDArray[np.float32]:
            nonlocal most
            array = tensor.rows(start, stop)
            seen.append(weakref.ref(array))
            most = max(most, sum(reference() is not None for reference in seen))
            return array

        return replace(tensor, rows=rows)

    tensors = {name: watched(tensor) for name, tensor in checkpoint.tensors.items()}
    export_model(replace(checkpoint, tensors=tensors), tmp_path / "out", precision_of(precision))
    # What a layer norm adds is taken up by the biases behind it, which multiplies their products.
    behind = ("attn.c_attn.weight", "mlp.c_fc.weight")
    again = 0 if precision == "fp32" else sum(name.endswith(behind) for name in tensors)
    assert len(seen) == len(tensors) + again
    assert 0 < most <= 4  # two threads, one result waiting, one being written
