"""The plan of an export: exact where it can be, without weights, and near the truth in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import write_checkpoint
from llama_checkpoints import CASES, Case, llama_config, llama_tensors

from pocketlm.benchmarks.shapes import SHAPES
from pocketlm.benchmarks.shapes import write_checkpoint as write_shape
from pocketlm.export import graph
from pocketlm.export import plan as plan_module
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError
from pocketlm.export.external_data import pieces
from pocketlm.export.folder import ModelFolder
from pocketlm.export.plan import open_headers, predicted_peak
from pocketlm.export.writing import build_decoder, export_model, plan_export
from pocketlm.quantize.run import precision_of

TINY = [CASES["llama"], CASES["qwen3, biases, tied"], CASES["phi3"], CASES["gemma3"]]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight", "int4"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.model_type)
def test_plan_is_what_the_export_then_does(case: Case, precision: str, tmp_path: Path) -> None:
    config = llama_config(case.model_type, **case.config)
    source = write_checkpoint(tmp_path / "in", config, llama_tensors(config), shards=2)
    plan = plan_export(open_headers(source), tmp_path / "out", precision_of(precision))
    assert not (tmp_path / "out").exists()
    folder = export_model(open_checkpoint(source), tmp_path / "out", precision_of(precision))
    assert plan.bytes_to_write == folder.weights_bytes
    assert plan.num_parameters == folder.manifest.num_parameters
    assert plan.num_tensors == len(llama_tensors(config))
    assert plan.bytes_to_read == 4 * plan.num_parameters
    written = sum(file.stat().st_size for file in folder.path.iterdir())
    assert folder.weights_bytes < written < plan.bytes_needed
    assert plan.seconds is not None and plan.seconds > 0


def test_plan_needs_no_weights(tmp_path: Path) -> None:
    config = llama_config() | {"torch_dtype": "float32"}
    source = write_checkpoint(tmp_path / "in", config, llama_tensors(config))
    expected = plan_export(open_headers(source), tmp_path / "out", precision_of("int4"))
    (tmp_path / "config only").mkdir()
    shutil.copy(source / "config.json", tmp_path / "config only")
    headers = open_headers(tmp_path / "config only")
    found = plan_export(headers, tmp_path / "out", precision_of("int4"))
    for name in ("num_tensors", "num_parameters", "bytes_to_read", "bytes_to_write"):
        assert getattr(found, name) == getattr(expected, name), name


# Rotated, a matrix of the largest width is whole; in int8 two of them are packed.
@pytest.mark.parametrize(("precision", "most"), [("fp32", 4e9), ("int4", 5e9), ("int8", 7e9)])
def test_plan_of_405_billion_parameters_is_made_from_config_json(
    precision: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a process that exports alone; what this one has is of the tests before.
    monkeypatch.setattr(plan_module, "rss_bytes", lambda: 200_000_000)
    monkeypatch.setattr(plan_module, "peak_rss_bytes", lambda: 200_000_000)
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["llama-405b"]))
    # The time is told for one of them: it is found by packing pieces as large as the model has.
    plan = plan_export(
        open_headers(tmp_path),
        tmp_path / "out",
        precision_of(precision),
        timed=precision == "int4",
    )
    assert plan.num_parameters == 405_853_388_800
    assert plan.bytes_to_read == 2 * 405_853_388_800
    assert plan.peak_memory_bytes < most
    assert (plan.seconds is not None) == (precision == "int4")
    assert not (tmp_path / "out").exists()


def test_plan_of_a_model_folder_is_refused_as_its_export(tiny_folder: ModelFolder) -> None:
    for opened in (open_headers, open_checkpoint):
        with pytest.raises(CheckpointError, match="is a pocketlm model folder .* already exported"):
            opened(tiny_folder.path)


def test_plan_refuses_what_the_export_would_refuse(tmp_path: Path) -> None:
    config = llama_config()
    tensors = llama_tensors(config)
    del tensors["model.norm.weight"]
    source = write_checkpoint(tmp_path / "in", config, tensors)
    with pytest.raises(CheckpointError, match="norm.weight"):
        plan_export(open_headers(source), tmp_path / "out")


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_skipping_alike_pieces_changes_no_prediction_of_memory(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llama_config()
    monkeypatch.setattr(graph, "PIECE_BYTES", 700)  # many pieces of every weight
    for name in ("rss_bytes", "peak_rss_bytes"):
        monkeypatch.setattr(plan_module, name, lambda: 0)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config, llama_tensors(config)))
    model = build_decoder(checkpoint).model
    change = precision_of(precision)
    if change is not None:
        change.apply(model)
    skipping = predicted_peak(model)
    assert len([*pieces(model)]) > len([*plan_module._telling_pieces([model], 3)])
    monkeypatch.setattr(plan_module, "_telling_pieces", lambda models, _: pieces(*models))
    assert skipping == predicted_peak(model) > 0


# In int8 three matrices whole, of which the first is written, and gone, on all but a slow disk
# before the last, which is also turned whole, is half read.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "most"), [("fp32", 1.15), ("int8", 1.35), ("int4", 1.15)], ids=lambda v: str(v)
)
def test_predicted_memory_is_near_the_measured(
    precision: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of a wide model, sparse, in a process of its own: more layers take no more."""
    wide = SHAPES["llama-8b"] | {
        "num_hidden_layers": 1,
        "intermediate_size": 8192,
        "vocab_size": 4096,
        "max_position_embeddings": 4096,
    }
    monkeypatch.setitem(SHAPES, "wide", wide)
    source = write_shape(tmp_path / "in", "wide", dtype="BF16", sparse=True)
    program = (
        "import sys\n"
        "from pocketlm.export.checkpoint import open_checkpoint\n"
        "from pocketlm.export.memory import peak_rss_bytes\n"
        "from pocketlm.export.observer import Observer\n"
        "from pocketlm.export.writing import export_model\n"
        "from pocketlm.quantize.run import precision_of\n"
        "plans = []\n"
        "source, out, precision = sys.argv[1:]\n"
        "observer = Observer(plan=plans.append)\n"
        "checkpoint, change = open_checkpoint(source), precision_of(precision)\n"
        "export_model(checkpoint, out, change, observer=observer)\n"
        "print(plans[0].peak_memory_bytes, peak_rss_bytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source, tmp_path / "out", precision],
        capture_output=True,
        text=True,
        check=True,
    )
    predicted, measured = map(int, done.stdout.split())
    assert 0.85 < predicted / measured < most
