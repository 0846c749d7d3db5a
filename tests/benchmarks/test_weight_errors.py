"""Weight errors per layer: names and order of the layers, and how tensors are put together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoint_files import gpt2_config, write_checkpoint

from pocketlm.benchmarks.weight_errors import weight_errors
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.manifest import PrecisionEntry, QuantizationReport, TensorReport
from pocketlm.quantize.run import export_checkpoint


@pytest.fixture
def folder_with(tiny_folder: ModelFolder) -> Callable[..., ModelFolder]:
    """Makes folders of which nothing but the manifest's report is read."""

    def make(*tensors: TensorReport) -> ModelFolder:
        report = QuantizationReport(
            share_quantized=1.0, bytes_before=1, bytes_after=1, tensors=tensors, skipped={}
        )
        precision = PrecisionEntry(name="int4", report=report)
        return replace(tiny_folder, manifest=replace(tiny_folder.manifest, precision=precision))

    return make


def tensor(
    name: str, error: float = 0.1, bits: float = 4.25, shape: tuple[int, ...] = (8, 8)
) -> TensorReport:
    return TensorReport(
        name=name,
        shape=shape,
        format="a format",
        bits_per_weight=bits,
        relative_error=error,
        maximum_error=error,
        bytes_before=1,
        bytes_after=1,
    )


@pytest.mark.parametrize(
    "tensors, layers",
    [
        (["wte.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight"], ["embedding", "h.0"]),
        (
            ["embed_tokens.weight", "layers.0.q.weight", "layers.10.q.weight", "lm_head.weight"],
            ["embedding", "layers.0", "layers.10", "head"],
        ),
        (["transformer.wte.weight", "transformer.h.1.attn.weight"], ["embedding", "h.1"]),
        (["model.layers.1.mlp.experts.5.w1.weight"], ["layers.1"]),
        (
            ["layers.0.q", "onnx::MatMul_7", "layers.1.q"],
            ["layers.0", "onnx::MatMul_7", "layers.1"],
        ),
        (["onnx::MatMul_7", "onnx::MatMul_9"], ["onnx::MatMul_7", "onnx::MatMul_9"]),
        ([], []),
    ],
)
def test_layers_are_named_by_their_number_in_the_order_of_the_graph(
    tensors: list[str], layers: list[str], folder_with: Callable[..., ModelFolder]
) -> None:
    found = weight_errors(folder_with(*map(tensor, tensors)))
    assert [layer["layer"] for layer in found] == layers


def test_a_layer_weighs_its_tensors_by_their_size(folder_with: Callable[..., ModelFolder]) -> None:
    small, large = tensor("h.0.a", 0.3, 8.0, (4, 4)), tensor("h.0.b", 0.1, 4.0, (4, 12))
    (layer,) = weight_errors(folder_with(small, large))
    assert layer["relative_error"] == pytest.approx(math.sqrt((0.09 + 3 * 0.01) / 4))
    assert layer["bits_per_weight"] == pytest.approx(5.0)


def test_a_real_folder_has_all_its_layers(tmp_path: Path) -> None:
    config = gpt2_config(vocab_size=300, n_embd=64, tie_word_embeddings=False)
    source = open_checkpoint(write_checkpoint(tmp_path / "source", config))
    found = weight_errors(export_checkpoint(source, tmp_path / "int4", "int4"))
    assert [layer["layer"] for layer in found] == ["embedding", "h.0", "h.1", "head"]
    # Four bits round to 1/16 of the range or finer; eight, for the embedding, sixteen times finer.
    errors = [layer["relative_error"] for layer in found]
    assert 0 < errors[0] < 0.02 < errors[1] < 0.2
    assert found[1]["bits_per_weight"] < 5 < found[0]["bits_per_weight"] < 9


def test_full_precision_has_no_errors(tiny_folder: ModelFolder) -> None:
    assert weight_errors(tiny_folder) == []
