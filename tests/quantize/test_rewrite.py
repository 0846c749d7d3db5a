"""The quantizing pass over whole models: which nodes change, what stays, what the report says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from model_folders import report_of

import pocketlm
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model
from pocketlm.quantize.precisions import FULL, PRECISIONS
from pocketlm.quantize.run import precision_of
from pocketlm.runtime.concatenating import ConcatenatingCache
from pocketlm.runtime.decode import generate
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.session import Session

QUANTIZED = [name for name in PRECISIONS if name != FULL]
WIDE = {"n_embd": 64, "n_head": 2, "vocab_size": 300}


def make(folder: Path, precision: str, options: dict[str, Any] | None = None, **config: Any) -> Any:
    """A model folder of a tiny random checkpoint."""
    checkpoint = write_checkpoint(folder / "source", gpt2_config(**(WIDE | config)))
    out = folder / f"out-{precision}"
    change = precision_of(precision, **(options or {}))
    return export_model(open_checkpoint(checkpoint), out, change)


def nodes(folder: ModelFolder) -> list[onnx.NodeProto]:
    return list(onnx.load(folder.path / "model.onnx", load_external_data=False).graph.node)


def operators(folder: ModelFolder) -> Counter[str]:
    return Counter(node.op_type for node in nodes(folder))


def file_bytes(folder: ModelFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.path.iterdir()}


@pytest.mark.parametrize(
    "precision, linear, table",
    [
        ("int8", {"MatMulIntegerToFloat": 8, "MatMulNBits": 1}, 1),
        ("int8-weight", {"MatMulNBits": 9}, 1),
        ("int4", {"MatMulNBits": 9}, 1),
    ],
)
def test_every_product_changes_to_its_format(
    precision: str, linear: dict[str, int], table: int, tmp_path: Path
) -> None:
    folder = make(tmp_path, precision)
    found = operators(folder)
    assert found["FusedMatMul"] == 0
    products = [node for node in nodes(folder) if node.op_type == "MatMul"]
    assert all(node.input[1].startswith("rotation.") for node in products)
    assert {name: found[name] for name in linear} == linear
    assert found["GatherBlockQuantized"] == table
    assert found["Gather"] == 1  # positions


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_graphs_keep_the_contract(precision: str, tied: bool, tmp_path: Path) -> None:
    quantized = make(tmp_path, precision, tie_word_embeddings=tied)
    full = make(tmp_path, "fp32", tie_word_embeddings=tied)
    onnx.checker.check_model(quantized.path / "model.onnx", full_check=True)
    assert quantized.graph() == full.graph()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantizing_a_folder_gives_the_bytes_of_a_quantized_export(
    precision: str, tied: bool, tmp_path: Path
) -> None:
    at_once = make(tmp_path, precision, tie_word_embeddings=tied)
    full = make(tmp_path, "fp32", tie_word_embeddings=tied)
    afterwards = export_model(full, tmp_path / "afterwards", precision_of(precision))
    assert file_bytes(at_once) == file_bytes(afterwards)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_logits_stay_near_float(precision: str, tmp_path: Path) -> None:
    full, quantized = make(tmp_path, "fp32"), make(tmp_path, precision)
    ids = np.arange(20) % 300
    sessions = [Session(folder, 1) for folder in (full, quantized)]
    expected, found = (session.all_logits(ids, session.new_cache()) for session in sessions)
    assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_report_covers_every_linear_layer_and_the_bytes(precision: str, tmp_path: Path) -> None:
    folder = make(tmp_path, precision)
    report = report_of(folder)
    names = [tensor.name for tensor in report.tensors]
    assert len(names) == len(set(names)) == 9
    assert names[0] == "wte.weight"
    assert report.share_quantized == pytest.approx(
        sum(np.prod(tensor.shape) for tensor in report.tensors) / folder.manifest.num_parameters,
        abs=1e-6,
    )
    assert report.bytes_before == 4 * folder.manifest.num_parameters
    gaps = 4096 * 40
    assert report.bytes_after <= folder.weights_bytes <= report.bytes_after + gaps
    assert all(0 < tensor.relative_error < 0.2 for tensor in report.tensors)


def test_untied_head_and_embedding_are_both_quantized(tmp_path: Path) -> None:
    report = report_of(make(tmp_path, "int4", tie_word_embeddings=False))
    formats = {tensor.name: tensor.format for tensor in report.tensors}
    assert formats["wte.weight"] == formats["lm_head.weight"] == "int8-block64"
    assert formats["h.0.mlp.c_proj.weight"] == "int4-block128"


def test_head_can_stay_in_float(tmp_path: Path) -> None:
    folder = make(tmp_path, "int4", {"head": "fp32"})
    assert operators(folder)["FusedMatMul"] == 1
    assert report_of(folder).skipped == {"wte.weight": "asked to stay in float32"}


def test_a_width_that_no_block_divides_is_filled_up(tmp_path: Path) -> None:
    folder = make(tmp_path, "int4", n_inner=104)
    report = report_of(folder)
    assert report.skipped == {}
    rows = {tensor.name: tensor for tensor in report.tensors}
    for i in range(2):
        row = rows[f"h.{i}.mlp.c_proj.weight"]
        assert row.format == "int4-block128" and row.reason is None
        assert row.bits_per_weight == pytest.approx(4.25 * 128 / 104)


def test_position_table_as_long_as_the_vocabulary_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = make(tmp_path, "int8", n_positions=300)
    assert operators(folder)["Gather"] == 1


def test_head_bias_survives(tmp_path: Path) -> None:
    config = gpt2_config(**WIDE, tie_word_embeddings=False)
    tensors = gpt2_tensors(config)
    tensors["lm_head.bias"] = np.linspace(-9, 9, 300, dtype=np.float32)
    source = write_checkpoint(tmp_path / "source", config, tensors=tensors)
    folder = export_model(open_checkpoint(source), tmp_path / "out", precision_of("int8"))
    session = Session(folder, 1)
    assert session.step([1, 2, 3], session.new_cache()).argmax() > 250


@pytest.mark.parametrize("precision", ["int8", "int8-weight"])
def test_chunks_and_caches_give_the_same_bits(precision: str, tmp_path: Path) -> None:
    """Every product treats a row by itself, so chunking cannot show beyond the attention kernel."""
    session = Session(make(tmp_path, precision), 1)
    ids = [(7 * i) % 300 for i in range(40)]
    whole = session.step(ids, session.new_cache()).copy()
    for size in (1, 3, 17):
        for cache in (session.new_cache(), ConcatenatingCache(session.shape)):
            for start in range(0, len(ids), size):
                found = session.step(ids[start : start + size], cache)
            np.testing.assert_allclose(found, whole, rtol=0, atol=2e-3 * np.abs(whole).max())


@pytest.mark.parametrize("precision", QUANTIZED)
def test_greedy_text_is_stable_across_chunk_sizes(precision: str, tmp_path: Path) -> None:
    model = pocketlm.load(make(tmp_path, precision).path, threads=1)
    prompt = [(11 * i) % 300 for i in range(30)]
    texts = set()
    for size in (1, 2, 7, 64):
        request = Request(prompt, GREEDY, 20, chunk_size=size)
        texts.add(tuple(step.token for step in generate(model.session, request)))
    assert len(texts) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("int5",), ["precision", "'int5'", "fp32, int8, int8-weight, int4"]),
        (("int4", 48), ["block_size", "48", "32, 64, 128"]),
        (("int4", 32, "int2"), ["head", "'int2'", "fp32, int8, int4"]),
        (("fp32", 32), ["block_size", "with fp32"]),
        (("fp32", 32, "int4"), ["block_size and head", "with fp32"]),
    ],
)
def test_unknown_choices_list_the_known(arguments: Any, words: list[str]) -> None:
    with pytest.raises(pocketlm.RequestError) as caught:
        precision_of(*arguments)
    assert all(word in str(caught.value) for word in words)


def test_quantizing_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pocketlm.RequestError, match="found a model in int8, expected fp32"):
        export_model(make(tmp_path, "int8"), tmp_path / "again", precision_of("int4"))
    assert not (tmp_path / "again").exists()
