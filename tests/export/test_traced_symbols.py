"""Every size that is followed through a traced graph is the one that ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from traced_graphs import STYLES, Style, traced_model

from pocketlm.export.graph import Graph
from pocketlm.export.traced.simplify import LiftConstants, Simplify
from pocketlm.export.traced.sizes import add, divide, equal, factors, multiply, subtract
from pocketlm.export.traced.symbols import Symbols

# No two are equal, and none is one of the graphs' own numbers.
SIZES = {"B": 3, "S": 5, "P": 11, "T": 16}


def size(item: Any) -> Any:
    """A letter or product as a number."""
    if not isinstance(item, str):
        return item
    number, letters = factors(item)
    return number * int(np.prod([SIZES[letter] for letter in letters]))


def values_of(model: ir.Model, style: Style) -> dict[str, np.ndarray[Any, Any]]:
    """Every value that the graph computes, for inputs of ``SIZES``."""
    proto = ir.serde.serialize_model(model)
    names = [name for node in proto.graph.node for name in node.output if name]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    past = np.zeros((3, style.kv_heads, 11, style.head_size), np.float32)
    feeds: dict[str, Any] = {
        value.name: past for value in proto.graph.input if value.name.startswith("past")
    }
    feeds |= {
        "input_ids": np.zeros((3, 5), np.int64),
        "attention_mask": np.ones((3, 16), np.int64),
        "position_ids": np.tile(np.arange(11, 16), (3, 1)),
    }
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("name", STYLES)
def test_what_is_known_is_true(name: str, simplified: bool) -> None:
    model = traced_model(STYLES[name])
    LiftConstants().apply(model)
    if simplified:
        Simplify().apply(model)
    symbols = Symbols(model)
    for node in model.graph:
        symbols.visit(node)
    found = values_of(model, STYLES[name])
    known = 0
    for node in model.graph:
        for value in node.outputs:
            array = found[str(value.name)]
            dims = symbols.dims.get(value)
            if dims is not None:
                assert len(dims) == array.ndim, value
                pairs = zip(dims, array.shape, strict=True)
                assert all(item is None or size(item) == real for item, real in pairs), value
                known += None not in dims
            elements = symbols.elements.get(value)
            if elements is not None:
                pairs = zip(elements.reshape(-1).tolist(), array.reshape(-1).tolist(), strict=True)
                assert all(item is None or size(item) == pytest.approx(n) for item, n in pairs)
    assert known > 0.9 * len(found)


@pytest.mark.parametrize(
    "function, a, b, expected",
    [
        (add, "P", "S", "T"),
        (add, "S", "B", None),
        (add, "T", 0, "T"),
        (add, 2, 3, 5),
        (subtract, "T", "S", "P"),
        (subtract, "T", "P", "S"),
        (subtract, "S", "S", 0),
        (subtract, None, None, None),
        (subtract, "S", "T", None),
        (multiply, "B", 4, "B*4"),
        (multiply, "B*4", 2, "B*8"),
        (multiply, "S", "B", "B*S"),
        (multiply, "B", None, None),
        (divide, "B*4", 4, "B"),
        (divide, "B*4", 3, None),
        (divide, 7, 2, 3),
        (divide, -7, 2, -3),
        (equal, "B", -1, False),
        (equal, "B", 1, None),
        (equal, "B", "B", True),
        (equal, "B", "S", None),
        (equal, None, -1, None),
    ],
)
def test_arithmetic_with_sizes(function: Any, a: Any, b: Any, expected: Any) -> None:
    assert function(a, b) == expected


def test_an_operator_that_is_not_listed_gives_nothing() -> None:
    g = Graph("unknown")
    x = g.input("input_ids", np.int64, ["batch_size", "sequence_length"])
    y = g.NonZero(x)
    shape = g.Shape(y)
    symbols = Symbols(g.model())
    for node in g.ir:
        symbols.visit(node)
    assert y not in symbols.dims
    assert shape not in symbols.elements
