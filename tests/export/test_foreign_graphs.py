"""Other runtimes' model folders: the same logits once they are ours, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from checkpoint_files import write_checkpoint
from command_line import Run
from foreign_folders import genai_folder, transformers_js_folder
from llama_checkpoints import llama_config, llama_tensors
from traced_graphs import GPT2, LLAMA, VOCAB, run_model

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError, ModelFolderError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.foreign import first_load
from pocketlm.export.foreign.folder import open_foreign
from pocketlm.export.foreign.opened import foreign_decoder, with_first_load
from pocketlm.export.placing import names_in
from pocketlm.export.writing import export_model
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.session import Session

IDS = [5, 40, 7, 7, 90, 12, 3]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is for ``test_first_load``: here each graph was made by these tests."""
    monkeypatch.setattr("pocketlm.export.foreign.opened.first_load", lambda folder: None)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFolder]:
    """Model folders of ours, of one Llama whose heads our kernel rotates."""
    root = tmp_path_factory.mktemp("llama")
    config = llama_config(hidden_size=64, num_attention_heads=4, head_dim=16)
    checkpoint = write_checkpoint(root / "in", config, llama_tensors(config))
    opened = open_checkpoint(checkpoint)
    return {
        name: export_model(opened, root / name, precision_of(name) if name != "fp32" else None)
        for name in ("fp32", "int4")
    }


def imported(folder: Path, out: Path) -> ModelFolder:
    decoder = foreign_decoder(open_foreign(folder))
    return export_model(decoder, out, with_first_load(decoder))


def logits(folder: ModelFolder, ids: list[int]) -> np.ndarray:
    session = Session(folder, threads=1)
    return session.all_logits(ids, session.new_cache())


@pytest.mark.parametrize("beside", [False, True], ids=["in its file", "beside it"])
@pytest.mark.parametrize("style", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_folder_of_transformers_js_keeps_its_logits(
    style: object, beside: bool, tmp_path: Path
) -> None:
    assert isinstance(style, type(LLAMA))
    source = transformers_js_folder(tmp_path / "theirs", style, beside=beside)
    ids = np.array([IDS])
    expected = run_model(source / "onnx" / "model.onnx", ids, np.ones_like(ids), style)[0]
    found = logits(imported(source, tmp_path / "ours"), IDS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_folder_of_genai_keeps_its_logits(
    precision: str, llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    ours = llamas[precision]
    found = imported(genai_folder(ours, tmp_path / "theirs"), tmp_path / "ours")
    assert found.graph().cache == ours.graph().cache
    assert found.shape == ours.shape
    assert found.manifest.precision.name == ("fp32" if precision == "fp32" else "mixed")
    np.testing.assert_allclose(logits(found, IDS), logits(ours, IDS), rtol=0, atol=1e-5)


def test_what_was_half_precision_is_single(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    graph = source / "onnx" / "model.onnx"
    model = ir.load(graph)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.Tensor(tensor.numpy().astype(np.float16), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    whole = logits(imported(source, tmp_path / "whole"), IDS)
    ir.save(model, graph)
    halves = logits(imported(source, tmp_path / "halves"), IDS)
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-2 * np.abs(whole).max())
    assert not np.array_equal(halves, whole)


def test_an_fp32_graph_is_quantized_and_another_is_not(
    llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    decoder = foreign_decoder(open_foreign(transformers_js_folder(tmp_path / "theirs")))
    made = export_model(decoder, tmp_path / "int8", with_first_load(decoder, precision_of("int8")))
    assert made.manifest.precision.name == "int8"
    packed = foreign_decoder(open_foreign(genai_folder(llamas["int4"], tmp_path / "packed")))
    with pytest.raises(RequestError, match="a foreign graph in .*, expected fp32"):
        with_first_load(packed, precision_of("int8"))
    export_model(packed, tmp_path / "kept", with_first_load(packed))
    with pytest.raises(RequestError, match="expected fp32"):
        export_model(ModelFolder.open(tmp_path / "kept"), tmp_path / "no", precision_of("int8"))


# What is refused ---------------------------------------------------------------------------------


def unknown_operator(model: ir.Model) -> None:
    node = next(iter(model.graph))
    node.domain, node.op_type = "com.example", "Shell"


def merged(model: ir.Model) -> None:
    branch = ir.Graph([], [], nodes=[])
    node = next(iter(model.graph))
    node.attributes["then_branch"] = ir.AttrGraph("then_branch", branch)
    node.op_type = "If"


def other_place(name: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        value = model.graph.initializers["embed.weight"]
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            name,
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name="embed.weight",
        )

    return change


def no_cache(model: ir.Model) -> None:
    model.graph.inputs.pop()


def circle(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Add")
    node.replace_input_with(0, node.outputs[0])


def old(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 11


REFUSED: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "an operator of others": (unknown_operator, "the operator 'com.example::Shell'"),
    "a merged decoder": (merged, r"branches \(If .* as of a merged decoder"),
    "weights outside": (other_place("../secret"), r"weights in '../secret', expected one file"),
    "weights at a place": (other_place("/etc/passwd"), "weights in '/etc/passwd'"),
    "weights that are not there": (other_place("secret"), "secret: missing, expected the weights"),
    "weights beyond a file": (other_place("short"), "within the 3 of short"),
    "no cache": (no_cache, r"present\.1\.value, expected|past_key_values"),
    "a circle": (circle, "that comes later, expected none"),
    "an old opset": (old, "opset 11, expected 14 to 24"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    source = transformers_js_folder(tmp_path / "theirs")
    graph = source / "onnx" / "model.onnx"
    model = ir.load(graph)
    change(model)
    (source / "onnx" / "short").write_bytes(b"123")
    graph.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    with pytest.raises((CheckpointError, ModelFolderError), match=message):
        imported(source, tmp_path / "out")
    assert names_in(tmp_path) == ["theirs"]
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "..\\model.onnx", 5])
def test_a_graph_outside_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    about = {"type": "llama", "decoder": {"filename": name}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": about}))
    with pytest.raises(CheckpointError, match="expected a graph in this folder"):
        open_foreign(tmp_path)


def test_of_several_graphs_one_is_named(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    other = source / "onnx" / "model_q4.onnx"
    (source / "onnx" / "model.onnx").rename(other)
    with pytest.raises(CheckpointError, match=r"found onnx/model_q4\.onnx, expected onnx/model"):
        open_foreign(source)
    assert open_foreign(other).graph == other


# The first load ----------------------------------------------------------------------------------


def test_a_first_load_that_fails_or_hangs_is_an_error(
    llamas: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llamas["fp32"]
    first_load.first_load(folder)
    monkeypatch.setattr(first_load, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(first_load, "WEIGHTS_TIMES", 0)
    with pytest.raises(CheckpointError, match="first load (failed|ended the process)"):
        first_load.first_load(folder)
    monkeypatch.setattr(first_load, "MOST_SECONDS", 0)
    monkeypatch.setattr(first_load, "BYTES_PER_SECOND", 1 << 40)
    with pytest.raises(CheckpointError, match="took more than 0 seconds, expected logits"):
        first_load.first_load(folder)


def test_a_frozen_application_has_no_python_for_it(
    llamas: dict[str, ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(CheckpointError, match="with pocketlm export --allow-foreign"):
        first_load.first_load(llamas["fp32"])


def test_nothing_is_published_that_ends_its_first_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(folder: ModelFolder) -> None:
        raise CheckpointError("ended by signal 11")

    monkeypatch.setattr("pocketlm.export.foreign.opened.first_load", dies)
    source = transformers_js_folder(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="signal 11"):
        imported(source, tmp_path / "out")
    assert names_in(tmp_path) == ["theirs"]


# On request --------------------------------------------------------------------------------------


def test_it_runs_on_request_alone_and_is_made_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = transformers_js_folder(tmp_path / "theirs", replace(LLAMA, layers=1))
    ended = run("run", source, "abc")
    assert (ended.code, "unless that is asked for (--allow-foreign)" in ended.err) == (2, True)
    asked = ("run", source, "abc", "--allow-foreign", "--temperature", "0", "--max-tokens", "4")
    first = run(*asked)
    assert first.code == 0
    monkeypatch.setattr("pocketlm.export.writing.export_model", None)
    assert run(*asked).out == first.out
    expected = pocketlm.load(source, allow_foreign=True, threads=1)
    assert expected.session.shape.vocab_size == VOCAB


def test_allowing_what_is_not_foreign_is_refused(run: Run, tiny_folder: ModelFolder) -> None:
    for name in ("demo", tiny_folder.path):
        ended = run("run", name, "abc", "--allow-foreign")
        assert ended.code == 2
        assert "--allow-foreign is given for" in ended.err


def test_weights_beside_a_graph_are_looked_at_whatever_their_name(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    graphs = source / "onnx"
    ir.save(ir.load(graphs / "model.onnx"), graphs / "model.onnx", external_data="weights.bin")
    for name in ("model_q4.onnx", "model_q4.onnx_data", "README.md"):
        (graphs / name).write_bytes(b"another's")
    found = {file.name for file in open_foreign(source).files}
    assert found == {"model.onnx", "weights.bin", "config.json"}


def test_weights_that_are_cut_off_meanwhile_are_an_error(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs", beside=True)
    decoder = foreign_decoder(open_foreign(source))
    (source / "onnx" / "model.onnx_data").write_bytes(b"123")
    with pytest.raises(ModelFolderError, match="found an end at byte"):
        export_model(decoder, tmp_path / "ours", with_first_load(decoder))
    assert names_in(tmp_path) == ["theirs"]
