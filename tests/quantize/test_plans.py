"""A plan is data: made by name, written, read, edited by hand and given back; wrong ones say why.

Levels: round trip (hypothesis), bytes of whole folders, error messages.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from command_line import Run, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_checkpoints import llama_config, llama_tensors
from model_folders import report_of

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.graph import Graph
from pocketlm.export.manifest import CalibrationEntry, PromiseEntry
from pocketlm.export.writing import build_decoder, export_model
from pocketlm.quantize import formats
from pocketlm.quantize.formats import find_format, known_formats
from pocketlm.quantize.plan import Plan, Rotated, choose, plan_for
from pocketlm.quantize.precisions import BLOCK_SIZES, FULL, HEADS, MIXED, PRECISIONS
from pocketlm.quantize.rewrite import Rewrite
from pocketlm.quantize.rotation import PARTS
from pocketlm.quantize.run import plan_of, planned, precision_of
from pocketlm.runtime.session import Session

PROMISE = PromiseEntry(max_kl=0.01, kl=0.008, tokens=4096, text="novel.txt")
WIDE = {"n_embd": 64, "n_head": 2, "vocab_size": 300}
PLAIN = ("--calibrate", "none")
HEAD, UP, DOWN = "wte.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"
OPTIONS: list[tuple[Any, ...]] = [
    ("int8",),
    ("int8-weight",),
    ("int4",),
    ("int4", 32, "int4"),
    ("int8", None, "fp32"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plans") / "source", gpt2_config(**WIDE))


@pytest.fixture(scope="module")
def full(checkpoint: Path) -> ModelFolder:
    return export_model(open_checkpoint(checkpoint), checkpoint.parent / "full")


@pytest.fixture
def model(checkpoint: Path) -> ir.Model:
    return build_decoder(open_checkpoint(checkpoint)).model


@pytest.fixture
def int4(model: ir.Model) -> Plan:
    return plan_for(model, "int4")


def contents(folder: ModelFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


# Read and write ---------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=20)
counts, figures = st.integers(0, 1 << 40), st.floats(0, 1e9)
parts = st.lists(st.sampled_from(PARTS), unique=True).map(tuple)
plans = st.builds(
    Plan,
    name=st.sampled_from([*PRECISIONS, MIXED]),
    block_size=st.none() | st.sampled_from(BLOCK_SIZES),
    head=st.none() | st.sampled_from([*HEADS]),
    rotation=st.none() | st.builds(Rotated, seed=counts, parts=parts),
    calibration=st.none() | st.builds(CalibrationEntry, kind=names, tokens=counts, digest=names),
    promise=st.none()
    | st.builds(
        PromiseEntry,
        max_kl=st.none() | figures,
        kl=figures,
        tokens=counts,
        text=st.text(max_size=9),
    ),
    formats=st.dictionaries(names, st.sampled_from([FULL, *known_formats()]), max_size=6),
)


@settings(deadline=None, max_examples=40)
@given(plans)
def test_reading_gives_what_was_written(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan.write(Path(folder) / "plan.json")
        assert Plan.read(Path(folder) / "plan.json") == plan


def test_a_plan_is_not_written_over_another_file(int4: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("mine")
    with pytest.raises(RequestError, match="plan.json: found a file, expected a new name"):
        int4.write(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "mine"


# Of a precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_plan_of_a_folder_given_back_gives_the_same_folder(
    options: tuple[Any, ...], checkpoint: Path, full: ModelFolder, tmp_path: Path
) -> None:
    source = open_checkpoint(checkpoint)
    by_name = export_model(source, tmp_path / "name", precision_of(*options))
    plan_of(by_name).write(tmp_path / "plan.json")
    change = planned(Plan.read(tmp_path / "plan.json"))
    assert contents(export_model(source, tmp_path / "plan", change)) == contents(by_name)
    change = planned(Plan.read(tmp_path / "plan.json"))
    assert contents(export_model(full, tmp_path / "quantized", change)) == contents(by_name)


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2"])
def test_the_plan_of_a_stream_that_cannot_be_rotated_keeps_its_name(
    kind: str, tmp_path: Path
) -> None:
    source = write_checkpoint(
        tmp_path / "in", llama_config(kind), llama_tensors(llama_config(kind))
    )
    folder = export_model(open_checkpoint(source), tmp_path / "out", precision_of("int8"))
    assert "int8-channel-asym" in {row.format for row in report_of(folder).tensors}
    plan_of(folder).write(tmp_path / "plan.json")
    change = planned(Plan.read(tmp_path / "plan.json"))
    again = export_model(open_checkpoint(source), tmp_path / "again", change)
    assert change.name == "int8"
    assert again.manifest.precision == folder.manifest.precision
    assert again.manifest.files == folder.manifest.files


def test_every_precision_names_formats_that_there_are() -> None:
    for name in PRECISIONS:
        blocks = (None,) if name == FULL else BLOCK_SIZES
        for block_size in blocks:
            choice = choose(name, block_size)
            for found in (choice.linear_format, choice.head_format):
                assert found == FULL or find_format(found).name == found


def test_a_plan_of_full_precision_changes_nothing(full: ModelFolder, tmp_path: Path) -> None:
    plan = plan_of(full)
    assert plan.name == FULL and set(plan.formats.values()) == {FULL} and HEAD in plan.formats
    assert contents(export_model(full, tmp_path / "out", planned(plan))) == contents(full)
    unnamed = replace(plan, name=MIXED, rotation=Rotated())
    assert contents(export_model(full, tmp_path / "two", planned(unnamed))) == contents(full)


def test_a_narrower_block_is_told_with_its_reason(full: ModelFolder, tmp_path: Path) -> None:
    folder = export_model(full, tmp_path / "out", precision_of("int4"))
    rows = {row.name: row for row in report_of(folder).tensors}
    assert rows[UP].format == "int4-block64"
    assert rows[UP].reason == (
        "64 input features take 4.50 bits per weight in blocks of 64, 8.50 in blocks of 128"
    )
    assert (rows[DOWN].format, rows[DOWN].reason) == ("int4-block128", None)


def test_a_plan_that_rotates_gives_the_same_folder_wherever_it_starts(
    checkpoint: Path, full: ModelFolder, int4: Plan, tmp_path: Path
) -> None:
    plan = replace(int4, rotation=Rotated(seed=5))
    folder = export_model(open_checkpoint(checkpoint), tmp_path / "one", planned(plan))
    rotation = folder.manifest.precision.rotation
    assert rotation is not None and rotation.seed == 5 and rotation.parts and not rotation.skipped
    assert contents(export_model(full, tmp_path / "two", planned(plan))) == contents(folder)
    again = planned(plan_of(folder))
    assert contents(export_model(full, tmp_path / "three", again)) == contents(folder)
    assert set(report_of(folder).skipped) == set()
    sessions = [Session(one, 1) for one in (full, folder)]
    expected, logits = (s.all_logits(np.arange(20), s.new_cache()) for s in sessions)
    assert np.linalg.norm(logits - expected) < 0.25 * np.linalg.norm(expected)


# By hand ----------------------------------------------------------------------------------------


def test_an_edited_plan_is_followed_and_called_mixed(
    full: ModelFolder, int4: Plan, tmp_path: Path
) -> None:
    edits = {UP: "int8-channel", DOWN: FULL, HEAD: "int4-block32"}
    edited = replace(int4, formats={**int4.formats, **edits})
    folder = export_model(full, tmp_path / "out", planned(edited))
    precision, report = folder.manifest.precision, report_of(folder)
    assert (precision.name, precision.block_size, precision.head) == (MIXED, None, None)
    found = {row.name: row.format for row in report.tensors}
    assert found == {name: f for name, f in edited.formats.items() if f != FULL}
    assert report.skipped == {DOWN: "asked to stay in float32"}
    assert plan_of(folder).formats == edited.formats
    assert not any(row.reason for row in report.tensors)
    sessions = [Session(one, 1) for one in (full, folder)]
    expected, logits = (s.all_logits(np.arange(20), s.new_cache()) for s in sessions)
    assert 0 < np.linalg.norm(logits - expected) < 0.25 * np.linalg.norm(expected)
    with pytest.raises(RequestError, match="found a model in mixed, expected fp32"):
        export_model(folder, tmp_path / "again", precision_of("int4"))


def test_a_plan_that_its_name_no_longer_fits_loses_it(model: ir.Model, int4: Plan) -> None:
    for edited in (
        replace(int4, name="int8-weight"),
        replace(int4, name=FULL, block_size=None, head=None),
        replace(int4, head="int4"),
        replace(int4, rotation=Rotated(seed=7)),
    ):
        assert edited.fitting(model) == replace(edited, name=MIXED, block_size=None, head=None)
    assert replace(int4, block_size=None).fitting(model) == int4


def test_what_a_plan_keeps_is_told_with_it(full: ModelFolder, int4: Plan, tmp_path: Path) -> None:
    calibration = CalibrationEntry(kind="dream", tokens=16384, digest="0" * 64)
    plan = replace(int4, calibration=calibration, promise=PROMISE)
    folder = export_model(full, tmp_path / "out", planned(plan))
    assert folder.manifest.precision.promise == plan.promise
    assert plan_of(folder) == plan


FILES: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", r"plan.json is not valid JSON"),
    "a list": ([], "plan.json holds a JSON array, expected a JSON object"),
    "no formats": ({"name": "int4"}, "plan.json: found nothing as 'formats', expected an object"),
    "formats in a list": ({"formats": []}, r"found '\[\]' as 'formats', expected an object"),
    "another field": ({"formats": {}, "format": 1}, "found the field 'format', expected name, "),
    "another name": ({"formats": {}, "name": "int5"}, "'int5' as 'name', expected one of fp32, "),
    "a block of 48": ({"formats": {}, "block_size": 48}, "expected one of 32, 64, 128"),
    "a block of 32.0": ({"formats": {}, "block_size": 32.0}, "expected one of 32, 64, 128"),
    "a head of 2 bit": ({"formats": {}, "head": "int2"}, "expected one of fp32, int8, int4;"),
    "a head in a list": ({"formats": {}, "head": []}, "expected one of fp32, int8, int4;"),
    "a seed": ({"formats": {}, "rotation": {"seed": -1}}, "'rotation.seed', expected a whole num"),
    "a part": ({"formats": {}, "rotation": {"parts": ["R9"]}}, "expected one of R1, R2, R4;"),
    "a promise": ({"formats": {}, "promise": {"kl": "x"}}, "'promise.kl', expected a number"),
    "a format": (
        {"formats": {"wte.weight": "int3-block9"}},
        "found 'int3-block9' as 'formats.wte.weight', expected one of fp32, int4-block16, ",
    ),
    "a format that is none": ({"formats": {"a": [1]}}, "as 'formats.a', expected one of fp32, "),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_plan_is_refused(name: str, tmp_path: Path) -> None:
    content, told = FILES[name]
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(RequestError, match=told) as caught:
        Plan.read(tmp_path / "plan.json")
    assert "\n" not in str(caught.value)


def without(plan: Plan, name: str) -> dict[str, str]:
    return {other: f for other, f in plan.formats.items() if other != name}


MISFITS: dict[str, tuple[Callable[[Plan], dict[str, str]], str]] = {
    "a wrong name": (
        lambda plan: {**without(plan, UP), "h.0.mlp.c_fd.weight": "int4-block64"},
        "the plan names 'h.0.mlp.c_fd.weight', expected weights of the model, such as h.0.mlp.c_fc",
    ),
    "names of another model": (
        lambda plan: {"x": FULL, "y": FULL},
        r"the plan names 'x' \(and 1 more\), expected weights of the model, such as wte.weight, ",
    ),
    "a weight left out": (
        lambda plan: without(plan, UP),
        f"the plan has no format for 1 of 9 weights, first {UP}, expected one for each",
    ),
    "a block that does not divide": (
        lambda plan: {**plan.formats, UP: "int8-block128"},
        f"the plan gives {UP} the format int8-block128, but 64 input features take 8.50 bits per "
        "weight in blocks of 64, 16.50 in blocks of 128; expected one that it can have, such as "
        "int8-block64",
    ),
    "a table without a lookup": (
        lambda plan: {**plan.formats, HEAD: "int8-channel"},
        "the format int8-channel, but int8-channel has no embedding; expected .* such as fp32",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_plan_of_another_model_is_refused(
    name: str, full: ModelFolder, int4: Plan, tmp_path: Path
) -> None:
    edit, told = MISFITS[name]
    with pytest.raises(RequestError, match=told) as caught:
        export_model(full, tmp_path / "out", planned(replace(int4, formats=edit(int4))))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# Graphs -----------------------------------------------------------------------------------------


def product_model(*, both_ways: bool) -> ir.Model:
    """logits = x · W · W, or x · W · Wᵀ with the same W."""
    g = Graph("products")
    x = g.input("x", np.float32, ["rows", 64])
    weight = g.weight("w", (64, 64), lambda start, stop: np.ones((stop - start, 64), np.float32))
    y = g.MatMul(x, weight)
    again = g.FusedMatMul(y, weight, transB=1) if both_ways else g.MatMul(y, weight)
    g.output(again, "logits", np.float32, ["rows", 64])
    return g.model()


def test_a_weight_that_is_used_both_ways_stays_as_it_is() -> None:
    model = product_model(both_ways=True)
    plan = plan_for(model, "int4")
    outcome = Rewrite(plan).apply(model)
    assert plan.formats == {"w": FULL}
    assert outcome.changed == []
    assert outcome.skipped == {"w": "used both as it is stored and transposed"}
    assert plan_for(product_model(both_ways=False), "int4").formats == {"w": "int4-block64"}


def test_a_weight_that_no_plan_names_stays_as_it_is() -> None:
    """Another pass brought it."""
    model = product_model(both_ways=False)
    outcome = Rewrite(Plan(formats={})).apply(model)
    assert (outcome.changed, outcome.skipped) == ([], {})
    assert "w" in model.graph.initializers


# Formats ----------------------------------------------------------------------------------------


def test_a_format_is_found_by_name_in_any_file_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "int1_sign.py").write_text(
        "from types import SimpleNamespace\nFORMATS = (SimpleNamespace(name='int1-sign'),)\n"
    )
    for name, found in known_formats().items():
        assert find_format(name) is found and found.name == name
    with pytest.raises(RequestError, match="found the format 'int1-sign', expected one of fp32, "):
        find_format("int1-sign")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    known_formats.cache_clear()
    try:
        assert find_format("int1-sign").name == "int1-sign"
    finally:
        known_formats.cache_clear()


# The command line -------------------------------------------------------------------------------


def test_a_plan_is_saved_edited_and_given_back(
    checkpoint: Path, full: ModelFolder, run: Run, tmp_path: Path
) -> None:
    saved = tmp_path / "plan.json"
    assert run("quantize", full.path, tmp_path / "int4", "--to", "int4", *PLAIN).code == 0
    assert run("info", tmp_path / "int4", "--save-plan", saved).code == 0
    assert_refused(run("info", tmp_path / "int4", "--save-plan", saved), "found a file, expected a")
    saved.write_text(saved.read_text().replace('c_proj.weight": "int4', 'c_proj.weight": "int8'))
    ended = run("quantize", full.path, tmp_path / "one", "--plan", saved)
    assert ended.code == 0 and "to mixed" in ended.err and "int8-block128" in ended.err
    assert run("export", checkpoint, tmp_path / "two", "--plan", saved).code == 0
    assert contents(ModelFolder.open(tmp_path / "one")) == contents(
        ModelFolder.open(tmp_path / "two")
    )
    dry = run("export", checkpoint, tmp_path / "three", "--plan", saved, "--dry-run", "--json")
    written = ModelFolder.open(tmp_path / "one").weights_bytes
    assert json.loads(dry.out)["bytes_to_write"] == written
    told = run("info", tmp_path / "one").out
    assert "precision     mixed; 9" in told
    assert "plan          int8-block64 in 3 weights, " in told
    assert_refused(run("quantize", tmp_path / "one", tmp_path / "x", "--to", "int4"), "in mixed,")


def test_info_groups_the_plan_and_tells_what_came_before(
    full: ModelFolder, int4: Plan, run: Run, tmp_path: Path
) -> None:
    plan = replace(int4, formats={**int4.formats, UP: FULL}, promise=PROMISE, rotation=Rotated())
    export_model(full, tmp_path / "out", planned(plan))
    told = run("info", tmp_path / "out").out
    assert "int8-block64 in 1 weight, " in told and "; fp32 in 1 weight\n" in told
    assert "promise       KL 0.008 nats per token, asked for at most 0.01; measured" in told
    assert "rotation      R1, R2, R4 of seed 0\n" in told
    assert "plan" not in run("info", full.path).out


def test_a_reason_stands_in_the_report(full: ModelFolder, run: Run, tmp_path: Path) -> None:
    ended = run("quantize", full.path, tmp_path / "out", "--to", "int4", *PLAIN)
    assert "int4-block64 (64 input features take 4.50 bits per weight in blocks of" in ended.err
    assert "int4-block128 (" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quantize", "FULL", "out"], "found no --to, expected one of --to, --plan,"),
        (
            ["quantize", "FULL", "out", "--to", "int8", "--plan", "p"],
            "found a precision with",
        ),
        (
            ["quantize", "FULL", "out", "--plan", "p", "--head", "int4"],
            "found --head with --plan",
        ),
        (
            ["export", "x", "out", "--plan", "p", "--precision", "int8"],
            "found a precision with",
        ),
        (
            ["export", "x", "out", "--plan", "p", "--block-size", "32"],
            "found --block-size with",
        ),
        (["export", "x", "out", "--plan", "p"], "p: .*missing|p: .*nothing|p.*No such file"),
    ],
)
def test_a_plan_stands_alone(
    arguments: list[str], told: str, full: ModelFolder, run: Run, tmp_path: Path
) -> None:
    given = [str(full.path) if word == "FULL" else word for word in arguments]
    assert_refused(run(*given), told)
