"""Gemm nodes, which only traced graphs have: weights in both orientations, biases, what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from pocketlm.export.external_data import write_weights
from pocketlm.export.graph import Graph
from pocketlm.export.manifest import DATA_FILE, QuantizationReport
from pocketlm.export.writing import count_parameters
from pocketlm.quantize.run import precision_of

RANDOM = np.random.default_rng(8)
WEIGHT = (0.1 * RANDOM.standard_normal((64, 96))).astype(np.float32)
BIAS = RANDOM.standard_normal(96).astype(np.float32)
X = RANDOM.standard_normal((5, 64)).astype(np.float32)


def gemm_model(*, bias: bool = True, **flags: Any) -> ir.Model:
    """logits = flags(x · W + b); W is stored (N, K) with transB."""
    g = Graph("gemm")
    x = g.input("x", np.float32, ["rows", 64])
    stored = WEIGHT.T if flags.get("transB") else WEIGHT
    weight = g.weight("fc.weight", stored.shape, lambda start, stop: stored[start:stop])
    others = [g.weight("fc.bias", (96,), lambda start, stop: BIAS[start:stop])] if bias else []
    g.output(g.Gemm(x, weight, *others, **flags), "logits", np.float32, ["rows", 96])
    return g.model()


def quantized(
    model: ir.Model, folder: Path, precision: str
) -> tuple[NDArray[Any], QuantizationReport]:
    """The model's output for X, and the report."""
    change = precision_of(precision)
    assert change is not None
    num_parameters = count_parameters(model)
    change.apply(model)
    write_weights({DATA_FILE: model}, folder)
    ir.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    report = change.describe(num_parameters).report
    assert report is not None
    return session.run(None, {"x": X})[0], report


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4"])
@pytest.mark.parametrize("flags", [{}, {"transB": 1}, {"alpha": 1.0, "beta": 1.0}, {"bias": False}])
def test_a_gemm_becomes_its_format_and_keeps_its_bias(
    flags: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    model = gemm_model(**flags)
    found, report = quantized(model, tmp_path, precision)
    expected = X @ WEIGHT + (BIAS if flags.get("bias", True) else 0)
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(X @ WEIGHT)
    assert not np.array_equal(found, expected)
    assert [tensor.name for tensor in report.tensors] == ["fc.weight"]
    assert "Gemm" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "int4"])
def test_a_weight_that_layers_share_is_packed_once(precision: str, tmp_path: Path) -> None:
    g = Graph("shared")
    x = g.input("x", np.float32, ["rows", 64])
    square = WEIGHT[:, :64]
    weight = g.weight("fc.weight", (64, 64), lambda start, stop: square[start:stop])
    g.output(g.MatMul(g.Relu(g.MatMul(x, weight)), weight), "logits", np.float32, ["rows", 64])
    found, report = quantized(g.model(), tmp_path, precision)
    expected = np.maximum(X @ square, 0) @ square
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)
    assert len(report.tensors) == 1
    size = (tmp_path / "model.onnx_data").stat().st_size
    assert report.bytes_after <= size < report.bytes_after + 4096


@pytest.mark.parametrize("flags", [{"alpha": 2.0}, {"beta": 0.5}])
def test_another_form_is_left_with_the_reason(flags: dict[str, Any], tmp_path: Path) -> None:
    found, report = quantized(gemm_model(**flags), tmp_path, "int8")
    expected = flags.get("alpha", 1) * (X @ WEIGHT) + flags.get("beta", 1) * BIAS
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    reason = "a product of another form than x · W"
    assert report.skipped == {"fc.weight": reason}
