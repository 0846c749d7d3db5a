"""Traced graphs, simplified and rewritten, compute what they computed, with far fewer nodes.

The twin is the graph as it was traced, run by ONNX Runtime on the whole text at once. Level:
matches reference.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoint_files import gpt2_config, write_checkpoint
from model_folders import report_of
from numpy.typing import NDArray
from traced_graphs import GPT2, LLAMA, STYLES, VOCAB, Style, run_model, traced_model, write_trace

from pocketlm.export.folder import GROWING, IN_PLACE, ModelFolder
from pocketlm.export.manifest import Tracing
from pocketlm.export.via_optimum import open_for_tracing, traced_decoder
from pocketlm.export.writing import Precision, write_folder
from pocketlm.quantize.run import precision_of, quantize_model
from pocketlm.runtime.session import Session

# Of the largest logit; measured 2e-6.
TOLERANCE = 1e-4
IDS = np.random.default_rng(4).integers(0, VOCAB, 40)
CHUNKS = ([40], [7, 1, 1, 20, 11], [1] * 40)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for what goes beside the graph; its weights are not used."""
    return write_checkpoint(tmp_path_factory.mktemp("source"), gpt2_config(vocab_size=VOCAB))


def export(
    source: Path,
    folder: Path,
    style: Style,
    precision: Precision | None = None,
    *,
    rewrite: bool = True,
    out: str = "out",
) -> ModelFolder:
    trace = write_trace(traced_model(style), style, folder / "trace")
    decoder = traced_decoder(open_for_tracing(source), folder / "trace", trace, rewrite=rewrite)
    return write_folder(decoder, folder / out, precision, force=False, on_plan=None, progress=None)


def expected_logits(folder: Path, style: Style) -> NDArray[np.float32]:
    mask = np.ones((1, len(IDS)), np.int64)
    logits: NDArray[np.float32] = run_model(
        folder / "trace" / "model.onnx", IDS[None], mask, style
    )[0]
    return logits


def check_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()


def operators(folder: ModelFolder) -> Counter[str]:
    graph = onnx.load(folder.path / "model.onnx", load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize("rewrite", [True, False])
@pytest.mark.parametrize("name", STYLES)
def test_logits_stay_what_they_were(name: str, rewrite: bool, source: Path, tmp_path: Path) -> None:
    folder = export(source, tmp_path, STYLES[name], rewrite=rewrite)
    assert folder.graph().cache.layout == (IN_PLACE if rewrite else GROWING)
    expected = expected_logits(tmp_path, STYLES[name])
    session = Session(folder, threads=1)
    for sizes in CHUNKS:
        cache, start, rows = session.new_cache(), 0, []
        for size in sizes:
            rows.append(session.all_logits(IDS[start : start + size], cache))
            start += size
        check_close(np.concatenate(rows), expected)
    check_close(session.step(IDS, session.new_cache()), expected[-1])


@pytest.mark.parametrize("name", STYLES)
def test_padded_rows_of_a_batch_stay_what_they_were(
    name: str, source: Path, tmp_path: Path
) -> None:
    folder = export(source, tmp_path, STYLES[name])
    ids = np.stack([IDS[:12], IDS[12:24]])
    mask = np.ones_like(ids)
    mask[0, :5] = 0
    expected = run_model(tmp_path / "trace" / "model.onnx", ids, mask, STYLES[name])
    found = run_model(folder.path / "model.onnx", ids, mask, STYLES[name])
    check_close(found[0, 5:], expected[0, 5:])
    check_close(found[1], expected[1])


@pytest.mark.parametrize("style", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_little_is_left_beside_the_work(style: Style, source: Path, tmp_path: Path) -> None:
    """Sizes are asked for once, whatever the number of layers."""
    few = export(source, tmp_path / "2", style)
    many = export(source, tmp_path / "5", replace(style, layers=5))
    counts = operators(few), operators(many)
    assert counts[1]["GroupQueryAttention"] == 5
    assert counts[0]["Shape"] == counts[1]["Shape"] <= 4
    for found in counts:
        assert not {"Constant", "Softmax", "Split", "Gemm", "Where"} & found.keys()
    raw = onnx.load(tmp_path / "5" / "trace" / "model.onnx", load_external_data=False).graph
    assert sum(counts[1].values()) < len(raw.node) / 4


def test_rewritten_graphs_are_in_the_contract_of_declared_ones(
    source: Path, tmp_path: Path
) -> None:
    folder = export(source, tmp_path, GPT2)
    assert folder.graph().inputs["num_logits_to_keep"] == "int64[]"
    assert folder.graph().traced == Tracing(made_by="optimum 2.1.0, torch 2.13.0")
    assert folder.graph().cache.layout == IN_PLACE
    config = json.loads((folder.path / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is True


def why_not_rewritten(folder: ModelFolder) -> str:
    traced = folder.graph().traced
    assert traced is not None and traced.not_rewritten is not None
    return traced.not_rewritten


def test_a_growing_graph_says_so_to_others(source: Path, tmp_path: Path) -> None:
    folder = export(source, tmp_path, GPT2, rewrite=False)
    config = json.loads((folder.path / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is False
    assert why_not_rewritten(folder) == "asked to stay as traced"


REFUSED: dict[str, tuple[Style, str]] = {
    "future": (Style(mask="future"), "the mask shows tokens that come later"),
    "mask of ids": (Style(mask="ids"), "the mask depends on the tokens"),
    "scores": (Style(spoiled="scores"), "layer 0: the scores go into Sigmoid"),
    "softmax": (Style(spoiled="softmax"), "layer 0: a softmax over axis 2"),
    "values": (Style(spoiled="values"), "present.0.value is used 2 times, expected once"),
    "head": (Style(spoiled="head"), "the logits do not come from a product"),
    "head size": (Style(head_size=12), "heads of 12, expected a multiple of 8"),
    "scaled window": (
        Style(mask="window", scaled_last=True),
        "a mask that is more than causal is scaled with the scores",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_takes_stays_as_traced_with_the_reason(
    name: str, source: Path, tmp_path: Path
) -> None:
    style, reason = REFUSED[name]
    folder = export(source, tmp_path, style)
    assert folder.graph().cache.layout == GROWING
    assert why_not_rewritten(folder).startswith(reason)
    session = Session(folder, threads=1)
    if name != "future":
        check_close(session.all_logits(IDS, session.new_cache()), expected_logits(tmp_path, style))


@pytest.mark.parametrize("style", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4"])
def test_every_weight_is_found_and_quantized(
    precision: str, style: Style, source: Path, tmp_path: Path
) -> None:
    folder = export(source, tmp_path, style, precision_of(precision))
    report = report_of(folder)
    names = {tensor.name for tensor in report.tensors}
    parts = ["qkv", "out"] if style.gemm else ["q", "k", "v", "out"]
    assert names == {
        "embed.weight",
        *(f"layers.{i}.attn.{part}.weight" for i in range(2) for part in parts),
    }
    assert not report.skipped
    session = Session(folder, threads=1)
    found = session.all_logits(IDS, session.new_cache())
    expected = expected_logits(tmp_path, style)
    assert np.linalg.norm(found - expected) < 0.4 * np.linalg.norm(expected)


@pytest.mark.parametrize("rewrite", [True, False])
def test_quantizing_a_traced_folder_gives_the_weights_of_a_quantized_export(
    rewrite: bool, source: Path, tmp_path: Path
) -> None:
    full = export(source, tmp_path, GPT2, rewrite=rewrite)
    afterwards = quantize_model(full, tmp_path / "afterwards", "int4")
    at_once = export(source, tmp_path, GPT2, precision_of("int4"), rewrite=rewrite, out="at-once")
    for name in ("model.onnx_data", "model.onnx"):
        assert (afterwards.path / name).read_bytes() == (at_once.path / name).read_bytes()
    assert afterwards.manifest == at_once.manifest
