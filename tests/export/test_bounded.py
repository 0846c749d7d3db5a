"""What others' masks are computed with stays within bounds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pocketlm.export.traced.bounded import LARGEST_RUN, BoundedEvaluator, TooLarge

MANY = LARGEST_RUN + 1


def evaluator(op_type: str, *inputs: object, **attributes: int) -> BoundedEvaluator:
    """Of one node, with inputs that are constants, or names of those of the model."""
    names = [each if isinstance(each, str) else f"c{i}" for i, each in enumerate(inputs)]
    constants = [
        numpy_helper.from_array(np.asarray(each), name)
        for each, name in zip(inputs, names, strict=True)
        if not isinstance(each, str)
    ]
    node = helper.make_node(op_type, names, ["out"])
    node.attribute.extend(helper.make_attribute(*each) for each in attributes.items())
    given = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name == "x"
    ]
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", given, [out], constants)
    opsets = [helper.make_opsetid("", 18)]
    return BoundedEvaluator(helper.make_model(graph, opset_imports=opsets))


@pytest.mark.parametrize(
    "bounded",
    [
        evaluator("ConstantOfShape", np.array([MANY])),
        evaluator("Range", np.int64(0), np.int64(MANY), np.int64(1)),
        evaluator("Range", np.float32(0), np.float32(1), np.float32(1e-12)),
        evaluator("Expand", np.zeros(1, np.float32), np.array([2, MANY])),
        evaluator("Tile", np.zeros(1, np.float32), np.array([MANY])),
        evaluator("Pad", np.zeros(1, np.float32), np.array([0, MANY])),
        evaluator("Add", np.zeros((20_000, 1), np.float32), np.zeros(20_000, np.float32)),
        evaluator("MatMul", np.zeros((20_000, 1), np.float32), np.zeros((1, 20_000), np.float32)),
        evaluator("Gather", np.zeros((2, 20_000), np.float32), np.zeros(20_000, np.int64)),
    ],
)
def test_too_many_numbers_are_refused_before_they_are_made(bounded: BoundedEvaluator) -> None:
    with pytest.raises(TooLarge, match="makes more than"):
        bounded({})


def test_what_a_long_mask_takes_is_computed() -> None:
    x = np.ones((1, 100_000), np.float32)
    (found,) = evaluator("Expand", "x", np.array([1, 1, 3, 100_000]))({"x": x})
    assert found.shape == (1, 1, 3, 100_000)
    (found,) = evaluator("Gather", "x", np.arange(100_000), axis=1)({"x": x})
    assert found.shape == x.shape
