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
from foreign_folders import (
    genai_folder,
    halve,
    pack,
    quantize_dynamic,
    transformers_js_folder,
)
from llama_checkpoints import llama_config, llama_tensors
from traced_graphs import GPT2, LLAMA, VOCAB, run_model

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.errors import CheckpointError, ModelFolderError, RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.foreign import first_load
from pocketlm.export.foreign.folder import open_foreign
from pocketlm.export.foreign.opened import foreign_decoder, with_first_load
from pocketlm.export.genai import SESSION_OPTIONS
from pocketlm.export.graph import Graph
from pocketlm.export.observer import SILENT
from pocketlm.export.placing import names_in
from pocketlm.export.writing import export_model
from pocketlm.models.making import import_once
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.int8_products import options_for
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
    source = transformers_js_folder(tmp_path / "theirs", GPT2)
    plain = source / "onnx" / "model.onnx"
    packed = pack(plain, plain.with_name("model_q4.onnx"))
    for graph, precision in ((plain, "fp32"), (packed, "int4")):
        half = halve(graph, graph.with_name(f"half_{graph.name}"))
        whole = logits(imported(graph, tmp_path / f"{precision}-whole"), IDS)
        found = imported(half, tmp_path / f"{precision}-half")
        assert found.manifest.precision.name == precision
        halves = logits(found, IDS)
        np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-2 * np.abs(whole).max())
        assert not np.array_equal(halves, whole)


# Products of whole numbers ------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_a_dynamically_quantized_graph_keeps_its_logits(
    weights: str, per_channel: bool, tmp_path: Path
) -> None:
    source = transformers_js_folder(tmp_path / "theirs", GPT2)
    plain = source / "onnx" / "model.onnx"
    graph = quantize_dynamic(plain, plain.with_name("q.onnx"), weights, per_channel=per_channel)
    ids = np.array([IDS])
    expected = run_model(graph, ids, np.ones_like(ids), GPT2, SESSION_OPTIONS)[0]
    full = run_model(plain, ids, np.ones_like(ids), GPT2)[0]
    found = imported(graph, tmp_path / "ours")
    most = np.abs(expected).max()
    np.testing.assert_allclose(logits(found, IDS), expected, rtol=0, atol=1e-5 * most)
    assert np.abs(full - expected).max() > 1e-3 * most
    assert found.manifest.precision.name == "int8-dynamic"
    assert found.graph().cache.layout == "growing"


def test_tables_alone_may_be_quantized(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    plain = source / "onnx" / "model.onnx"
    graph = quantize_dynamic(plain, plain.with_name("model_quantized.onnx"), "int8")
    ids = np.array([IDS])
    expected = run_model(graph, ids, np.ones_like(ids), LLAMA)[0]
    found = logits(imported(graph, tmp_path / "ours"), IDS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_its_session_multiplies_exactly_and_it_is_not_quantized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = transformers_js_folder(tmp_path / "theirs", GPT2)
    plain = source / "onnx" / "model.onnx"
    graph = quantize_dynamic(plain, plain.with_name("model_int8.onnx"), "int8")
    folder = imported(graph, tmp_path / "ours")
    monkeypatch.setattr("pocketlm.runtime.int8_products.are_exact", lambda: False)
    assert options_for(folder.formats) == SESSION_OPTIONS
    with pytest.raises(RequestError, match="found a model in int8-dynamic, expected fp32"):
        export_model(folder, tmp_path / "no", precision_of("int4"))
    with pytest.raises(RequestError, match="foreign graph in int8-dynamic, expected fp32"):
        with_first_load(foreign_decoder(open_foreign(graph)), precision_of("int4"))


def test_an_fp32_graph_is_quantized_and_another_is_not(
    llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    decoder = foreign_decoder(open_foreign(transformers_js_folder(tmp_path / "theirs")))
    made = export_model(decoder, tmp_path / "int8", with_first_load(decoder, precision_of("int8")))
    assert made.manifest.precision.name == "int8"
    packed = foreign_decoder(open_foreign(genai_folder(llamas["int4"], tmp_path / "packed")))
    with pytest.raises(RequestError, match="a foreign graph in .*, expected fp32"):
        with_first_load(packed, precision_of("int8"))
    with pytest.raises(RequestError, match="precision is fp32, expected .*, as this graph comes"):
        with_first_load(packed, precision_of("fp32"), "fp32")
    export_model(packed, tmp_path / "kept", with_first_load(packed))
    with pytest.raises(RequestError, match="expected fp32"):
        export_model(ModelFolder.open(tmp_path / "kept"), tmp_path / "no", precision_of("int8"))


# What is refused ---------------------------------------------------------------------------------


def unknown_operator(model: ir.Model) -> None:
    node = next(iter(model.graph))
    node.domain, node.op_type = "com.example", "Shell"


def in_four_bits_of_floats(model: ir.Model) -> None:
    """As ``model_bnb4.onnx`` has its products."""
    node = next(node for node in model.graph if node.op_type == "MatMul")
    node.domain, node.op_type = "com.microsoft", "MatMulBnb4"


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


def without_inputs(kind: str) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        next(node for node in model.graph if node.op_type == kind).resize_inputs(0)

    return change


def cast_to_a_text(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Cast")
    node.attributes["to"] = ir.AttrString("to", "text\n\x1b[31m")


def in_four_bits(model: ir.Model) -> None:
    value = model.graph.initializers["embed.weight"]
    packed = ir.Tensor(
        np.zeros(value.const_value.shape.numpy(), np.uint8),  # type: ignore[union-attr]
        dtype=ir.DataType.UINT4,
        name="embed.weight",
    )
    value.const_value = packed  # whatever the graph says of the value


def old(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 11


REFUSED: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "an operator of others": (unknown_operator, "the operator 'com.example::Shell'"),
    "products in bnb4": (in_four_bits_of_floats, "the operator 'com.microsoft::MatMulBnb4'"),
    "a merged decoder": (merged, r"branches \(If .* as of a merged decoder"),
    "weights outside": (other_place("../secret"), r"weights in '../secret', expected one file"),
    "weights at a place": (other_place("/etc/passwd"), "weights in '/etc/passwd'"),
    "weights that are not there": (other_place("secret"), "secret: missing, expected the weights"),
    "weights beyond a file": (other_place("short"), "within the 3 of short"),
    "no cache": (no_cache, r"present\.1\.value, expected|past_key_values"),
    "a circle": (circle, "that comes later, expected none"),
    "no inputs": (without_inputs("MatMul"), "model.onnx: found what is no graph .ValueError"),
    "an attribute of a kind": (cast_to_a_text, "model.onnx: found what is no graph .TypeError"),
    "four bits": (in_four_bits, "UINT4 in 'embed.weight', expected numbers of a CPU"),
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
    with pytest.raises((CheckpointError, ModelFolderError), match=message) as refused:
        imported(source, tmp_path / "out")
    assert str(refused.value).isprintable()
    assert names_in(tmp_path) == ["theirs"]
    assert {file: file.read_bytes() for file in source.rglob("*") if file.is_file()} == before


def named(model: ir.Model, operator: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == operator)


def given(operator: str, index: int, array: np.ndarray | np.generic) -> Callable[[ir.Model], None]:
    """The input ``index`` of the first node of that kind is another constant."""

    def change(model: ir.Model) -> None:
        g = Graph.editing(model)
        named(model, operator).replace_input_with(index, g.constant(np.asarray(array), "other"))

    return change


def made_of(operator: str, index: int, name: str) -> Callable[[ir.Model], None]:
    """The input ``index`` of the first node of that kind is an input of the graph."""

    def change(model: ir.Model) -> None:
        value = next(value for value in model.graph.inputs if value.name == name)
        named(model, operator).replace_input_with(index, value)

    return change


def huge(model: ir.Model) -> None:
    value = named(model, WHOLE).inputs[1]
    assert value is not None and value.const_value is not None
    proto = ir.serde.serialize_tensor(value.const_value)
    proto.dims[:] = [1 << 20, 1 << 20]
    value.const_value = ir.serde.TensorProtoTensor(proto)


def by_columns(model: ir.Model) -> None:
    node = named(model, TABLE)
    node.attributes["axis"] = ir.AttrInt64("axis", 1)


def without_zero(model: ir.Model) -> None:
    named(model, WHOLE).resize_inputs(2)


TABLE, MEASURED, WHOLE = "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"
INT8_REFUSED: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "a table's zero point of another type": (
        given(TABLE, 2, np.int8(0)),
        r"'other' of int8 \(\) in the node .*, expected uint8",
    ),
    "a table's zero point for each column": (
        given(TABLE, 2, np.zeros(32, np.uint8)),
        r"'other' of uint8 \(32,\)",
    ),
    "a table's scale of 0": (given(TABLE, 1, np.float32(0)), "a scale of 0 in the node"),
    "a table's scale that is no number": (
        given(TABLE, 1, np.float32(np.nan)),
        "a scale|one number",
    ),
    "a table's scale that is computed": (
        made_of(TABLE, 1, "past_key_values.0.key"),
        "'past_key_values.0.key', which is computed",
    ),
    "a table of other numbers": (made_of(TABLE, 0, "input_ids"), "'input_ids' of int64"),
    "a table by columns": (by_columns, "the attribute 'axis' in the node"),
    "measuring of whole numbers": (made_of(MEASURED, 0, "input_ids"), "quantizing of int64"),
    "a product of floats": (
        made_of(WHOLE, 0, "past_key_values.0.key"),
        "a product of float32 in 4 dimensions",
    ),
    "a product with other rows": (
        given(WHOLE, 1, np.ones((31, 96), np.int8)),
        "sizes 32 and 31 of a product",
    ),
    "a product with a vector": (given(WHOLE, 1, np.ones(32, np.int8)), r"int8 in 2 dimensions"),
    "a product with floats": (
        given(WHOLE, 1, np.ones((32, 96), np.float32)),
        "'other' of float32 in the node .*, expected int8 or uint8",
    ),
    "a product without zero points": (without_zero, "2 inputs .*, expected 4 to 4"),
    "zero points of another type": (
        given(WHOLE, 3, np.uint8(0)),
        r"'other' of uint8 \(\) in the node .*, expected int8",
    ),
    "fewer zero points": (
        given(WHOLE, 3, np.zeros(95, np.int8)),
        r"'other' of int8 \(95,\) in the node .*, expected int8 \(96,\)",
    ),
    "activations with zero points of a weight": (
        given(WHOLE, 2, np.int8(0)),
        "a zero point of int8 in 0 dimensions",
    ),
    "activations with many zero points": (
        given(WHOLE, 2, np.zeros(2, np.uint8)),
        "a zero point of uint8 in 1 dimensions",
    ),
    "a weight that is not all there": (huge, "does not have the numbers that its sizes ask for"),
}


def test_a_cache_in_place_is_not_for_products_that_mix_texts(
    llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    source = genai_folder(llamas["fp32"], tmp_path / "theirs")
    model = ir.load(source / "model.onnx")
    g, attention = Graph.editing(model), named(model, "GroupQueryAttention")
    with g.before(attention):
        g.DynamicQuantizeLinear(attention.inputs[0], outputs=3)
    ir.save(model, source / "model.onnx")
    with pytest.raises(CheckpointError, match="DynamicQuantizeLinear beside a cache in place"):
        foreign_decoder(open_foreign(source))


@pytest.fixture(scope="module")
def int8_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    style = replace(GPT2, layers=1)
    source = transformers_js_folder(tmp_path_factory.mktemp("int8") / "theirs", style)
    plain = source / "onnx" / "model.onnx"
    return quantize_dynamic(plain, plain.with_name("model_int8.onnx"), "int8")


@pytest.mark.parametrize("case", INT8_REFUSED)
def test_products_of_whole_numbers_that_no_tool_writes_are_refused(
    case: str, int8_graph: Path, tmp_path: Path
) -> None:
    change, message = INT8_REFUSED[case]
    model = ir.load(int8_graph)
    change(model)
    graph = int8_graph.with_name("changed.onnx")
    graph.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    with pytest.raises(CheckpointError, match=message):
        imported(graph, tmp_path / "out")
    assert names_in(tmp_path) == []


def test_what_a_change_would_stumble_over_is_found_before_it(
    llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    source = genai_folder(llamas["fp32"], tmp_path / "theirs")
    graph = source / "model.onnx"
    whole = graph.read_bytes()
    name = b"layers.1.mlp.down_proj"
    graph.write_bytes(whole.replace(name, name[:-1] + b"\xff"))
    with pytest.raises(CheckpointError, match="model.onnx: found "):
        foreign_decoder(open_foreign(source))
    graph.write_bytes(whole)
    model = ir.load(graph)
    node = next(node for node in model.graph if str(node.name) == name.decode())
    node.resize_inputs(1)
    graph.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    with pytest.raises(CheckpointError, match=r"1 inputs of 'layers.1.mlp.down_proj'"):
        foreign_decoder(open_foreign(source))


@pytest.mark.parametrize(
    ("size", "found"), [(2**31, "context_length 2147483648, expected 1 to 2147483647")]
)
def test_sizes_that_no_decoder_has_are_refused(size: int, found: str, tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs", replace(LLAMA, context=size))
    with pytest.raises(CheckpointError, match=found):
        foreign_decoder(open_foreign(source))


def test_full_precision_of_a_graph_that_lost_it_is_refused_everywhere(
    run: Run, llamas: dict[str, ModelFolder], tmp_path: Path
) -> None:
    source = genai_folder(llamas["int4"], tmp_path / "theirs")
    asked = ("--allow-foreign", "--precision", "fp32")
    for command in (("run", source, "abc"), ("export", source, tmp_path / "out")):
        ended = run(*command, *asked)
        assert (ended.code, "expected mixed, as this graph comes" in ended.err) == (2, True)
    assert names_in(tmp_path) == ["theirs"]


def test_what_is_odd_in_a_graph_is_told_in_one_line(run: Run, tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    graph = source / "onnx" / "model.onnx"
    model = ir.load(graph)
    model.graph.outputs.append(ir.Value(name="nobody", type=ir.TensorType(ir.DataType.FLOAT)))
    graph.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    ended = run("run", source, "abc", "--allow-foreign")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "..\\model.onnx", "a" * 5000, 5])
def test_a_graph_outside_the_folder_is_refused(name: object, tmp_path: Path) -> None:
    about = {"type": "llama", "decoder": {"filename": name}}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": about}))
    with pytest.raises(CheckpointError, match="expected a graph in this folder"):
        open_foreign(tmp_path)


def test_what_people_are_shown_of_a_graph_is_harmless(tmp_path: Path) -> None:
    source = transformers_js_folder(tmp_path / "theirs")
    graph = source / "onnx" / "model.onnx"
    model = ir.load(graph)
    for name, told in (("\x1b[31mevil\n", "unknown"), ("a" * 1000, "a" * 100)):
        model.producer_name, model.producer_version = name, ""
        ir.save(model, graph)
        traced = foreign_decoder(open_foreign(source)).traced
        assert traced is not None
        assert traced.made_by == told
    (source / "config.json").write_text(json.dumps({"model_type": "\x1b[31mllama\n"}))
    with pytest.raises(CheckpointError, match=r"found model_type '.x1b.*', expected a word"):
        open_foreign(source)


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


def test_in_a_precision_of_its_own_it_is_made_once_and_listed(
    int8_graph: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = import_once(int8_graph, None, None, SILENT)
    monkeypatch.setattr("pocketlm.export.writing.export_model", None)
    assert import_once(int8_graph, None, None, SILENT).path == first.path
    assert "int8-dynamic" in run("list").out


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
