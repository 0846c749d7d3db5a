"""A traced graph as somebody would have written it: what is fixed is a constant, and nothing idle.

    Constant                                         ->  an initializer; equal ones are one
    values made of sizes alone                       ->  a constant, or one Concat for all layers
    Identity, Cast to the same dtype, Slice of all   ->  nothing
    Reshape to (B, S, 4, 16)                         ->  Reshape to (0, 0, 4, 16), a constant
    MatMul(x, Transpose(W))                          ->  FusedMatMul(x, W, transB=1)
    Reshape(Gemm(Reshape(x, (-1, K)), W, b), (B, S, N))  ->  MatMul(x, W) + b

Weights stay lazy, keep their names, and keep their bytes. What is known of sizes comes from
``symbols``. The numbers that the graph computes do not change.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ..graph import Graph, Weight
from ..graph_pass import Outcome
from .sizes import BATCH, NEW, PAST, TOTAL, Size, factors
from .symbols import END, Symbols, attribute


class Simplify:
    """The pass over a traced model whose weights are lazy."""

    def apply(self, model: ir.Model) -> Outcome:
        """Changes what can be simpler: by name of the value that was replaced."""
        return Outcome(changed=_Simplifying(model).run())


class _Simplifying:
    """One run over one model."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        self._symbols = Symbols(model)
        self._graph = Graph.editing(model)
        self._sizes: dict[tuple[Size, ...], ir.Value] = {}

    def run(self) -> list[str]:
        """Changes the model in place; the values that others took the place of."""
        changed = []
        self._model.graph.opset_imports.setdefault("com.microsoft", 1)
        for node in list(self._model.graph):
            self._symbols.visit(node)
            found = self._simpler(node)
            if found is not None:
                changed.append(str(node.outputs[0].name))
                self._graph.replace(node.outputs[0], found)
        common.RemoveUnusedNodesPass()(self._model)
        common.CommonSubexpressionEliminationPass()(self._model)
        return changed

    def _simpler(self, node: ir.Node) -> ir.Value | None:
        """A value to use in place of the only output of ``node``."""
        if len(node.outputs) != 1:
            return None
        with self._graph.before(node):
            if node.outputs[0].is_graph_output():
                return self._product(node) or self._idle_end(node)
            return (
                self._known(node) or self._idle(node) or self._product(node) or self._reshape(node)
            )

    # Sizes ------------------------------------------------------------------------------------

    def _known(self, node: ir.Node) -> ir.Value | None:
        """A constant, or a vector of sizes that all layers share."""
        output = node.outputs[0]
        elements = self._symbols.elements.get(output)
        dtype = self._symbols.dtypes.get(output)
        if elements is None or dtype is None:
            return None
        items = elements.reshape(-1).tolist()
        if self._symbols.numbers(output) is not None:
            return self._constant(np.array(items, dtype.numpy()).reshape(elements.shape))
        if dtype != ir.DataType.INT64 or None in items or elements.ndim > 1:
            return None
        found = self._vector(tuple(items))
        return found if elements.ndim else self._scalar(found, items[0])

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        value = self._graph.constant(array, constant_name(array))
        self._symbols.know_constant(value)
        return value

    def _scalar(self, vector: ir.Value, letter: Size) -> ir.Value:
        key = (letter, "scalar")
        if key not in self._sizes:
            self._sizes[key] = self._graph.Squeeze(vector, name=f"size_{letter}")
            self._remember(self._sizes[key], letter)
        return self._sizes[key]

    def _vector(self, items: tuple[Size, ...]) -> ir.Value:
        """A value (len(items),) of numbers and letters, made where it is first needed."""
        if items in self._sizes:
            return self._sizes[items]
        made: ir.Value
        if len(items) > 1:
            parts = [
                self._vector((item,)) if isinstance(item, str) else self._constant(np.array([item]))
                for item in items
            ]
            made = self._graph.Concat(*parts, axis=0, name="shape")
        else:
            made = self._letter(str(items[0]))
        self._sizes[items] = made
        self._remember(made, list(items))
        return made

    def _letter(self, letter: str) -> ir.Value:
        number, letters = factors(letter)
        if letter != letters[0]:
            made = self._vector((letters[0],))
            for other in [*letters[1:], *([number] if number != 1 else [])]:
                factor = self._vector((other,)) if isinstance(other, str) else None
                made = self._graph.Mul(made, factor or self._constant(np.array([other])))
            return made
        ids, mask = self._inputs["input_ids"], self._inputs["attention_mask"]
        if letter == PAST:
            # Not from the cache's own shape: a cache in place is longer than what it holds.
            return self._graph.Sub(self._vector((TOTAL,)), self._vector((NEW,)), name="size_P")
        source, axis = {BATCH: (ids, 0), NEW: (ids, 1), TOTAL: (mask, 1)}[letter]
        return self._graph.Shape(source, start=axis, end=axis + 1, name=f"size_{letter}")

    def _remember(self, value: ir.Value, items: Any) -> None:
        self._symbols.elements[value] = np.array(items, object)
        self._symbols.dims[value] = self._symbols.elements[value].shape
        self._symbols.dtypes[value] = ir.DataType.INT64

    # Nodes that do nothing --------------------------------------------------------------------

    def _idle(self, node: ir.Node) -> ir.Value | None:
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return None
        known = self._symbols.dtypes
        same_dtype = known.get(source) is not None and known[source] == known[node.outputs[0]]
        if node.op_type == "Identity" or (node.op_type == "Cast" and same_dtype):
            return source
        if node.op_type == "Slice" and self._takes_all(node, source):
            return source
        if node.op_type in ("Expand", "Reshape"):
            before, after = (self._symbols.dims.get(value) for value in (source, node.outputs[0]))
            return source if before is not None and None not in before and before == after else None
        return None

    def _idle_end(self, node: ir.Node) -> ir.Value | None:
        """As ``_idle``, if the output's name can move to what a node makes and nothing else is."""
        found = self._idle(node)
        if found is None or found.producer() is None or found.is_graph_output():
            return None
        return found

    def _takes_all(self, node: ir.Node, source: ir.Value) -> bool:
        starts, steps = (
            self._symbols.numbers(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 4)
        )
        ends = self._symbols.elements.get(node.inputs[2]) if node.inputs[2] else None
        axes = self._symbols.numbers(node.inputs[3]) if len(node.inputs) > 3 else None
        if starts is None or ends is None or axes is None or {*starts} != {0}:
            return False
        if steps is not None and {*steps} != {1}:
            return False
        return all(
            (isinstance(end, int) and end >= END)
            or (end is not None and end == self._symbols.size(source, axis))
            for end, axis in zip(ends.tolist(), axes, strict=True)
        )

    def _reshape(self, node: ir.Node) -> ir.Value | None:
        """A Reshape whose shape is a constant: 0 copies a size, -1 takes what is left."""
        if node.op_type != "Reshape" or node.inputs[1] is None:
            return None
        wanted = self._symbols.elements.get(node.inputs[1])
        if wanted is None or self._symbols.numbers(node.inputs[1]) is not None:
            return None
        sizes: list[Any] = [
            0 if isinstance(size, str) and size == self._symbols.size(node.inputs[0], i) else size
            for i, size in enumerate(wanted.tolist())
        ]
        letters = [i for i, size in enumerate(sizes) if isinstance(size, str)]
        if None in sizes or len(letters) > (0 if -1 in sizes else 1):
            return None
        for i in letters:
            sizes[i] = -1
        result: ir.Value = self._graph.Reshape(node.inputs[0], self._constant(np.array(sizes)))
        self._symbols.visit(result.producer())  # type: ignore[arg-type]
        self._symbols.dims[result] = tuple(
            self._symbols.size(node.outputs[0], i) for i in range(len(sizes))
        )
        return result

    # Products ---------------------------------------------------------------------------------

    def _product(self, node: ir.Node) -> ir.Value | None:
        if node.op_type == "MatMul":
            return self._transposed_product(node)
        return self._gemm(node) if node.op_type == "Reshape" else None

    def _transposed_product(self, node: ir.Node) -> ir.Value | None:
        transpose = producer(node.inputs[1], "Transpose")
        if transpose is None or transpose.inputs[0] is None:
            return None
        weight = transpose.inputs[0]
        if not is_matrix(weight) or attribute(transpose, "perm", (1, 0)) != (1, 0):
            return None
        return self._made(
            self._graph.FusedMatMul(node.inputs[0], weight, transB=1, name="product"), node
        )

    def _gemm(self, node: ir.Node) -> ir.Value | None:
        """``node`` is the Reshape behind the product."""
        gemm = producer(node.inputs[0], "Gemm")
        flat = producer(gemm.inputs[0], "Reshape") if gemm is not None else None
        if gemm is None or flat is None or not is_plain_gemm(gemm) or flat.inputs[0] is None:
            return None
        x, (weight, *bias) = flat.inputs[0], gemm.inputs[1:]
        before, after = self._symbols.dims.get(x), self._symbols.dims.get(node.outputs[0])
        if before is None or after is None or None in before[:-1] or not is_matrix(weight):
            return None
        if self._symbols.size(flat.outputs[0], -1) != before[-1] or before[:-1] != after[:-1]:
            return None
        if attribute(gemm, "transB", 0):
            product = self._graph.FusedMatMul(x, weight, transB=1, name="product")
        else:
            product = self._graph.MatMul(x, weight, name="product")
        self._made(product, node)
        if not bias or bias[0] is None:
            return product
        return self._made(self._graph.Add(product, bias[0], name="add_bias"), node)

    def _made(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """Remembers of ``value`` what is known of the output of ``node``."""
        old = node.outputs[0]
        self._symbols.dtypes[value] = self._symbols.dtypes.get(old)
        if old in self._symbols.dims:
            self._symbols.dims[value] = self._symbols.dims[old]
        return value


class LiftConstants:
    """Turns Constant nodes into initializers, equal ones into one."""

    def apply(self, model: ir.Model) -> Outcome:
        """Changes the model in place; what was changed are the names of these initializers."""
        parameters = set(model.graph.initializers)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        first: dict[tuple[Any, ...], ir.Value] = {}
        for name, value in list(model.graph.initializers.items()):
            if name in parameters or value.const_value is None:
                continue
            array = value.const_value.numpy()
            digest = hashlib.sha256(array.tobytes()).digest()
            same = first.setdefault((array.dtype, array.shape, digest), value)
            if same is not value:
                ir.convenience.replace_all_uses_with(value, same)
                del model.graph.initializers[name]
        return Outcome(changed=[str(value.name) for value in first.values()])


def constant_name(array: NDArray[Any]) -> str:
    """The same for the same constant: numbers that can be read, or a hash."""
    text = ".".join(str(item) for item in array.reshape(-1).tolist()) if array.size <= 8 else ""
    if not text or len(text) > 60:
        text = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    return f"{array.dtype}.{'x'.join(map(str, array.shape))}.{text}"


def is_matrix(value: ir.Value | None) -> bool:
    """Whether ``value`` is a two-dimensional initializer."""
    tensor = value.const_value if value is not None else None
    return isinstance(tensor, Weight | ir.ExternalTensor) and len(tensor.shape) == 2


def is_plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm is x · W + b with W as stored or transposed."""
    scales = {attribute(node, name, 1.0) for name in ("alpha", "beta")}
    return scales == {1.0} and not attribute(node, "transA", 0)


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of that operator which makes ``value``, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None
