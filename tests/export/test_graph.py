"""The builder of graphs: what it names, and what an operator returns."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from pocketlm.export.graph import Graph


def rows(start: int, stop: int) -> NDArray[np.float32]:
    return np.zeros((stop - start, 4), np.float32)


def test_a_scope_names_nodes_and_leaves_weights_their_name() -> None:
    g = Graph("scopes")
    x = g.input("x", np.float32, ["batch_size", 8])
    with g.scope("h.0"), g.scope("mlp"):
        weight = g.weight("h.0.mlp.c_fc.weight", (8, 4), rows)
        product = g.MatMul(x, weight, name="c_fc")
        again = g.MatMul(x, weight, name="c_fc")
    assert [node.name for node in g.ir] == ["h.0.mlp.c_fc", "h.0.mlp.c_fc_2"]
    assert [product.name, again.name] == ["h.0.mlp.c_fc", "h.0.mlp.c_fc_2"]
    assert list(g.ir.initializers) == ["h.0.mlp.c_fc.weight"]


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
