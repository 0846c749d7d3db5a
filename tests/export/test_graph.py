"""The builder of graphs: what it names, and what an operator returns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from pocketlm.export.graph import Blob, Graph


def rows(start: int, stop: int) -> NDArray[np.float32]:
    return np.zeros((stop - start, 4), np.float32)


class Zeros:
    """A source that has every parameter."""

    def blob(self, name: str, shape: tuple[int, ...]) -> Blob:
        return Blob(rows)


def test_a_scope_names_nodes_and_parameters_and_nothing_else() -> None:
    g = Graph("scopes", Zeros())
    x = g.input("x", np.float32, ["batch_size", 8])
    with g.scope("h.0"), g.scope("mlp"):
        product = g.MatMul(x, g.parameter("c_fc.weight", (8, 4)), name="c_fc")
        again = g.MatMul(x, g.weight("h.0.scales", (8, 4), rows), name="c_fc")
        g.table("rope.cos", (8, 4), rows)
        g.constant(np.float32(1), "one")
    assert [node.name for node in g.ir] == ["h.0.mlp.c_fc", "h.0.mlp.c_fc_2"]
    assert [product.name, again.name] == ["h.0.mlp.c_fc", "h.0.mlp.c_fc_2"]
    assert list(g.ir.initializers) == ["h.0.mlp.c_fc.weight", "h.0.scales", "rope.cos", "one"]


def test_a_parameter_of_the_same_name_is_the_same_value() -> None:
    g = Graph("shared", Zeros())
    with g.scope("wte"):
        table = g.parameter("weight", (8, 4))
    assert g.parameter("wte.weight", (8, 4)) is table
    assert list(g.ir.initializers) == ["wte.weight"]


def test_an_operator_returns_its_output_or_the_number_asked_for() -> None:
    g = Graph("outputs")
    x = g.input("x", np.float32, ["batch_size", 8])
    assert isinstance(g.Relu(x), ir.Value)
    halves = g.Split(x, outputs=2, axis=-1, num_outputs=2, name="halves")
    assert [half.name for half in halves] == ["halves", "halves:1"]
    assert len(g.Split(x, outputs=1, axis=-1, num_outputs=1)) == 1


def test_what_is_no_operator_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="weihgt"):
        _ = Graph("typo").weihgt
