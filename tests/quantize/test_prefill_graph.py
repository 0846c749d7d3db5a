"""The second set of weights: what it is, what it shares with the first, how a folder gets it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from command_line import Run, assert_refused
from graph_folders import load, traced_folder
from numpy.typing import NDArray
from onnx import TensorProto
from traced_graphs import GPT2

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import ModelFolderError, RequestError, StorageError
from pocketlm.export.folder import PAGE, ModelFolder
from pocketlm.export.manifest import (
    DATA_FILE,
    DECODER,
    INT8_KV_PREFILL,
    PREFILL_DATA_FILE,
    PREFILL_DECODER,
    TensorReport,
)
from pocketlm.export.observer import Observer
from pocketlm.export.plan import ExportPlan
from pocketlm.export.writing import export_model, open_decoder
from pocketlm.quantize.plan import Plan, plan_for
from pocketlm.quantize.precisions import FULL, Calibration
from pocketlm.quantize.run import plan_of, planned, precision_of
from pocketlm.runtime.engine import onnxruntime
from pocketlm.runtime.session import Session

IDS = np.random.default_rng(3).integers(0, 300, 80)
PLAIN = ("--calibrate", "none", "--quiet")
UP = "h.0.mlp.c_fc.weight"


def places(folder: ModelFolder, name: str) -> dict[str, tuple[str, int, int]]:
    """File, offset and length of every weight that is not in the graph's own file."""
    found = {}
    for tensor in load(folder, name).graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = where["location"], int(where["offset"]), int(where["length"])
    return found


def own(folder: ModelFolder) -> tuple[TensorReport, ...]:
    """What the manifest says of the weights that the second set does not share."""
    prefill = folder.manifest.precision.prefill
    assert prefill is not None and prefill.name == "int8"
    return prefill.tensors


def logits(folder: ModelFolder, name: str) -> NDArray[np.float32]:
    """(S, V) of ``IDS`` by a graph over float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder.graph_file(name)), options)
    empty = np.zeros((1, folder.shape.kv_heads, 0, folder.shape.head_size), np.float32)
    names = [value.name for value in session.get_inputs()]
    given: dict[str, Any] = {name: empty for name in names if name.startswith("past")}
    given |= {"input_ids": IDS[None], "attention_mask": np.ones((1, len(IDS)), np.int64)}
    given["position_ids"] = np.arange(len(IDS))[None]
    found = session.run(["logits"], {n: v for n, v in given.items() if n in names})
    result: NDArray[np.float32] = found[0][0]
    return result


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def files(folder: ModelFolder, *names: str) -> dict[str, bytes]:
    return {name: (folder.path / name).read_bytes() for name in names or folder.files}


@pytest.fixture(scope="module")
def plain(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model in int4 without a second set."""
    return export_model(tiny_folder, tmp_path_factory.mktemp("plain") / "o", precision_of("int4"))


@pytest.fixture(scope="module")
def both(tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The same with one; not to be written to."""
    change = precision_of("int4", prefill=True)
    return export_model(tiny_folder, tmp_path_factory.mktemp("both") / "o", change)


# What it is --------------------------------------------------------------------------------------


def test_the_second_file_has_nothing_but_w8a8(both: ModelFolder) -> None:
    """Every other weight lies where the decoder has it; no byte of the file is without a name."""
    decoder, second = places(both, DECODER), places(both, PREFILL_DECODER)
    elsewhere = {name: at for name, at in second.items() if at[0] == PREFILL_DATA_FILE}
    assert second.keys() - elsewhere.keys()
    assert all(decoder[name] == second[name] for name in second.keys() - elsewhere.keys())
    assert {tensor.format for tensor in own(both)} == {"int8-channel"}
    parts = {f"{tensor.name}.{part}" for tensor in own(both) for part in ("data", "scales")}
    assert elsewhere.keys() == parts
    end = 0
    for _, offset, length in sorted(elsewhere.values()):
        assert 0 <= offset - end < PAGE
        end = offset + length
    assert end == both.prefill_bytes
    assert sum(tensor.bytes_after for tensor in own(both)) == sum(
        length for _, _, length in elsewhere.values()
    )


def test_the_decoder_is_what_it_is_alone(both: ModelFolder, plain: ModelFolder) -> None:
    assert files(both, *plain.files) == files(plain)
    assert both.files.keys() - plain.files.keys() == {PREFILL_DATA_FILE, "model_prefill.onnx"}
    precision = replace(both.manifest.precision, prefill=None)
    assert precision == plain.manifest.precision
    assert both.weights_bytes == plain.weights_bytes


def test_it_computes_what_the_model_in_int8_computes(
    tiny_folder: ModelFolder, both: ModelFolder, tmp_path: Path
) -> None:
    """Bit for bit: the head of int4 is the same 8-bit blocks."""
    int8 = export_model(tiny_folder, tmp_path / "int8", precision_of("int8"))
    np.testing.assert_array_equal(logits(both, PREFILL_DECODER), logits(int8, DECODER))
    assert int8.manifest.precision.report is not None
    rows = {tensor.name: tensor for tensor in int8.manifest.precision.report.tensors}
    assert all(rows[tensor.name] == tensor for tensor in own(both))


def test_keys_and_values_are_near_the_decoders(both: ModelFolder, tiny_folder: ModelFolder) -> None:
    full = logits(tiny_folder, DECODER)
    found = distance(logits(both, PREFILL_DECODER), full)
    assert found < distance(logits(both, DECODER), full) / 4  # 8 bits of both in place of 4


def test_a_session_of_it_holds_all_that_its_graph_names(both: ModelFolder) -> None:
    held = sum(length for _, _, length in set(places(both, PREFILL_DECODER).values()))
    gaps = both.weights_bytes - sum(n for *_, n in set(places(both, DECODER).values()))
    assert held <= both.prefill_memory_bytes <= held + gaps + len(own(both)) * PAGE


def test_formats_of_both_are_told(both: ModelFolder) -> None:
    """Processors that need an option for W8A8 need it for the second set."""
    assert both.formats == {"int8-channel", *both.decoder_formats}
    assert "int8-channel" not in both.decoder_formats


# Of other precisions -----------------------------------------------------------------------------


def test_layers_that_are_in_w8a8_already_are_shared(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    plan = plan_for(open_decoder(tiny_folder).model, "int4")
    plan = replace(plan, formats=plan.formats | {UP: "int8-channel"})
    folder = export_model(tiny_folder, tmp_path / "out", planned(plan, prefill=True))
    assert UP not in {tensor.name for tensor in own(folder)} and len(own(folder)) == 7
    there = [places(folder, name)[f"{UP}.data"] for name in (DECODER, PREFILL_DECODER)]
    assert there[0] == there[1] and there[0][0] == DATA_FILE
    assert plan_of(folder).formats == plan.formats  # that of the decoder, to be given again


def test_a_head_keeps_its_format(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    change = precision_of("int4", head="int4", prefill=True)
    folder = export_model(tiny_folder, tmp_path / "out", change)
    head = "wte.weight.data"
    assert places(folder, DECODER)[head] == places(folder, PREFILL_DECODER)[head]


def test_beside_float32_nothing_is_rotated_that_both_have(
    tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = export_model(tiny_folder, tmp_path / "out", precision_of(FULL, prefill=True))
    assert folder.manifest.precision.name == FULL and folder.manifest.precision.report is None
    assert files(folder, "model.onnx", DATA_FILE) == files(tiny_folder, "model.onnx", DATA_FILE)
    assert {tensor.format for tensor in own(folder)} == {"int8-channel-asym"}
    assert "rotation.R4.64" in {
        tensor.name for tensor in load(folder, PREFILL_DECODER).graph.initializer
    }
    assert 0 < distance(logits(folder, PREFILL_DECODER), logits(folder, DECODER)) < 0.05
    again = export_model(folder, tmp_path / "int4", precision_of("int4"))  # of the decoder alone
    assert list(again.manifest.graphs) == [DECODER]


def test_calibrated_it_is_rounded_with_the_same_feedback(
    tiny_checkpoint: Path, both: ModelFolder, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    words = np.random.default_rng(3).choice("the sea was calm and cold at night".split(), 900)
    text.write_text(" ".join(words), encoding="utf-8")
    change = precision_of("int4", calibration=Calibration((text,), tokens=1280), prefill=True)
    folder = export_model(open_checkpoint(tiny_checkpoint), tmp_path / "out", change)
    assert INT8_KV_PREFILL in folder.manifest.graphs
    assert places(folder, PREFILL_DECODER) == places(folder, INT8_KV_PREFILL)
    folder.verify(remembered=False)
    # Roundings that make up for each other are each further from their weight.
    for nearest, found in zip(own(both), own(folder), strict=True):
        assert found.name == nearest.name
        assert nearest.relative_error < found.relative_error < 4 * nearest.relative_error


# Refused -----------------------------------------------------------------------------------------


def test_int8_has_it_already() -> None:
    with pytest.raises(RequestError, match="found int8 with a second set of weights .* leave it o"):
        precision_of("int8", prefill=True)


def test_a_plan_all_in_w8a8_has_it_already(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    plan = replace(plan_for(open_decoder(tiny_folder).model, "int8"), head=None)
    with pytest.raises(RequestError, match="found (int8|mixed) with a second set of weights"):
        export_model(tiny_folder, tmp_path / "out", planned(plan, prefill=True))
    assert not (tmp_path / "out").exists()


def test_a_cache_that_grows_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a traced graph that makes its cache anew"):
        traced_folder(tmp_path / "out", GPT2, rewrite=False, prefill=True)
    assert not (tmp_path / "out").exists()


def test_a_traced_graph_in_place_gets_it(tmp_path: Path) -> None:
    folder = traced_folder(tmp_path / "out", GPT2, rewrite=True, precision="int4", prefill=True)
    assert {tensor.format for tensor in own(folder)} == {"int8-channel-asym"}
    assert folder.graph(PREFILL_DECODER).traced == folder.graph().traced


# The folder --------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_is_written(
    tiny_checkpoint: Path, both: ModelFolder, plain: ModelFolder, run: Run, tmp_path: Path
) -> None:
    given = ("export", tiny_checkpoint, tmp_path / "out", "--precision", "int4", "--dry-run")
    wanted = ("--prefill", "int8", "--calibrate", "none")
    told = json.loads(run(*given, *wanted, "--json").out)
    assert told["prefill_bytes"] == both.prefill_bytes
    assert told["bytes_to_write"] == plain.weights_bytes + both.prefill_bytes
    assert told["bytes_needed"] > told["bytes_to_write"]
    assert told["prefill_memory_bytes"] == pytest.approx(both.prefill_memory_bytes, abs=20_000)
    shown = run(*given, *wanted).out
    assert "prefill       int8 weights beside them, +41.1 kB on disk, +" in shown


def test_progress_is_of_both_files(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    plans: list[ExportPlan] = []
    observer = Observer(plan=plans.append, progress=lambda *pair: told.append(pair))
    change = precision_of("int4", prefill=True)
    folder = export_model(tiny_folder, tmp_path / "out", change, observer=observer)
    whole = folder.weights_bytes + folder.prefill_bytes
    assert {total for _, total in told} == {whole} == {plans[0].bytes_to_write}
    done = [position for position, _ in told]
    assert done == sorted(done) and folder.weights_bytes in done and done[-1] == whole


def test_the_disk_must_hold_both(
    tiny_folder: ModelFolder,
    plain: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = sum(entry.bytes for entry in plain.files.values()) + 4_000_000  # for the first alone
    monkeypatch.setattr("pocketlm.export.publishing.free_space", lambda place: free)
    export_model(tiny_folder, tmp_path / "one", precision_of("int4"))
    with pytest.raises(StorageError, match="free"):
        export_model(tiny_folder, tmp_path / "two", precision_of("int4", prefill=True))
    assert not (tmp_path / "two").exists()


def test_from_an_fp32_folder_come_the_same_bytes(
    tiny_checkpoint: Path, tiny_folder: ModelFolder, run: Run, tmp_path: Path
) -> None:
    at_once, later = tmp_path / "at-once", tmp_path / "later"
    wanted = ("--prefill", "int8", *PLAIN)
    assert run("export", tiny_checkpoint, at_once, "--precision", "int4", *wanted).code == 0
    assert run("quantize", tiny_folder.path, later, "--to", "int4", *wanted).code == 0
    assert files(ModelFolder.open(at_once)) == files(ModelFolder.open(later))
    assert (at_once / "pocketlm.json").read_bytes() == (later / "pocketlm.json").read_bytes()


def test_it_goes_with_the_folder_that_is_replaced(
    both: ModelFolder, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(both.path, moved)
    ModelFolder.open(moved).verify(remembered=False)
    export_model(tiny_folder, moved, precision_of("int4", prefill=True), force=True)
    assert files(ModelFolder.open(moved)) == files(both)
    replaced = export_model(tiny_folder, moved, precision_of("int4"), force=True)
    assert {file.name for file in moved.iterdir()} == {*replaced.files, "pocketlm.json"}


def test_damage_of_the_second_file_is_found_and_named(both: ModelFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(both.path, copy)
    file = copy / PREFILL_DATA_FILE
    data = file.read_bytes()
    file.write_bytes(data[:-5000] + bytes(5000))
    with pytest.raises(ModelFolderError, match=f"{PREFILL_DATA_FILE}: found SHA-256 .*, expected"):
        ModelFolder.open(copy).verify()
    file.write_bytes(data[:-1])
    with pytest.raises(ModelFolderError, match=f"{PREFILL_DATA_FILE}: found {len(data) - 1} bytes"):
        ModelFolder.open(copy)
    file.unlink()
    with pytest.raises(ModelFolderError, match=f"{PREFILL_DATA_FILE}: missing, expected a file"):
        ModelFolder.open(copy)


def test_info_tells_both_sets(both: ModelFolder, plain: ModelFolder, run: Run) -> None:
    told = run("info", both.path, "--verify").out
    assert "prefill       int8 weights beside them, +41.1 kB on disk, +" in told
    assert "              int8-channel in 8 weights, 26.9 kB\n" in told
    assert "\ntensors, for prompts" in told
    assert "all files are as they were written" in told
    assert "prefill" not in run("info", plain.path).out
    entry = json.loads(run("info", both.path, "--json").out)["precision"]["prefill"]
    assert [row["format"] for row in entry["tensors"]] == ["int8-channel"] * 8


def test_a_plan_saved_of_it_makes_the_decoder_again(
    both: ModelFolder, plain: ModelFolder, tiny_folder: ModelFolder, run: Run, tmp_path: Path
) -> None:
    saved = tmp_path / "plan.json"
    assert run("info", both.path, "--save-plan", saved).code == 0
    folder = export_model(tiny_folder, tmp_path / "out", planned(Plan.read(saved)))
    assert files(folder) == files(plain)


def test_what_cannot_be_is_refused_before_anything_is_read(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run("export", "demo", out, "--precision", "int8", "--prefill", "int8")
    assert_refused(ended, "found int8 with a second set of weights")
    ended = run("export", "x", out, "--via", "optimum", "--no-rewrite", "--prefill", "int8")
    assert_refused(ended, "found --no-rewrite with --prefill")
    assert_refused(run("export", "demo", out, "--prefill", "int4"), "'int4' is not")


def test_the_session_runs_the_decoder_of_such_a_folder(both: ModelFolder) -> None:
    session = Session(both, threads=1)
    found = session.all_logits(IDS, session.new_cache())
    np.testing.assert_array_equal(found, logits(both, DECODER))
    assert ir.load(both.graph_file(PREFILL_DECODER)).graph.name == "gpt2"
