"""A graph under construction: every operator is a method that takes values and returns values.

    g = Graph("gpt2", source)
    x = g.input("x", np.float32, ["batch_size", "sequence_length", 768])
    with g.scope("h.0.mlp"):
        x = g.MatMul(x, g.parameter("c_fc.weight", (768, 3072)), name="c_fc")

Nodes and parameters are named inside the open scope, here ``h.0.mlp.c_fc`` and
``h.0.mlp.c_fc.weight``, as checkpoints do. Other initializers keep the name they are given.
Weights are lazy: a ``Weight`` knows its shape and dtype, and is computed when it is written out, a
run of rows at a time, so that memory does not grow with the largest tensor. Two weights may share
one ``Blob`` (the tied embedding and head); it is written once.
Built over onnx-ir; operators ONNX does not define come from ONNX Runtime's ``com.microsoft``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, overload

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray

# graph-contract.md section 1: opset 23 has RMSNormalization, so that onnx.checker passes in full.
OPSETS = {"": 23, "com.microsoft": 1}
IR_VERSION = 11

# Operators of ONNX Runtime's own domain that our graphs use; where ONNX has one of that name as
# well, ``domain=""`` asks for it.
MICROSOFT_OPERATORS = frozenset(
    {
        "BiasGelu",
        "FastGelu",
        "FusedMatMul",
        "GatherBlockQuantized",
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QuickGelu",
        "RotaryEmbedding",
    }
)

Dimension = int | str


Rows = Callable[[int, int], NDArray[Any]]  # (start, stop) along the first dimension -> values

# Bytes of a weight that are computed at once, as float32: some rows of it.
PIECE_BYTES = 4 << 20


# Step of a blob that can only be made all at once.
WHOLE = sys.maxsize


class Blob:
    """Values of a weight, made on demand. Two weights with the same blob are stored once.

    ``rows`` may be called from any thread. ``step`` is the number of rows to ask for at a time;
    None lets it follow from their size. ``scratch`` is what a call holds beside its result, in
    bytes, about. ``at_hand`` says that the values are there once the weight before has been made.
    """

    def __init__(
        self, rows: Rows, step: int | None = None, *, scratch: int = 0, at_hand: bool = False
    ) -> None:
        self.rows = rows
        self.step = step
        self.scratch = scratch
        self.at_hand = at_hand


class Weight(ir.LazyTensor):
    """An initializer whose values are read from its blob when asked for, and never kept."""

    learned = True  # counts among the model's parameters

    def __init__(
        self, name: str, shape: Sequence[int], dtype: DTypeLike, blob: Blob | None = None
    ) -> None:
        self.blob = blob or Blob(lambda start, stop: np.zeros((stop - start, *shape[1:]), dtype))
        kind = ir.DataType.from_numpy(np.dtype(dtype))
        super().__init__(self._tensor_now, kind, ir.Shape(shape), name=name)

    def _tensor_now(self) -> ir.TensorProtocol:
        return ir.Tensor(self.read(), name=self.name)

    @property
    def num_rows(self) -> int:
        """Size of the first dimension; 1 for a scalar."""
        return int(self.shape.numpy()[0]) if len(self.shape) else 1

    @property
    def row_bytes(self) -> int:
        return self.nbytes // max(1, self.num_rows)

    @property
    def step(self) -> int:
        return self.blob.step or rows_per_piece(self.row_bytes)

    def read(self) -> NDArray[Any]:
        """The values, computed now; raises what the source raises, ValueError on a wrong shape."""
        return self.rows(0, self.num_rows)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """The values of rows ``start`` to ``stop``, C-contiguous; raises as ``read``."""
        array = self.blob.rows(start, stop)
        shape = tuple(self.shape.numpy())
        expected = (stop - start, *shape[1:]) if shape else ()
        if array.size != math.prod(expected) or array.dtype != self.dtype.numpy():
            raise ValueError(
                f"weight {self.name!r}: read {array.dtype} {array.shape}, "
                f"declared {self.dtype.numpy()} {expected}"
            )
        return np.ascontiguousarray(array).reshape(expected)


def rows_per_piece(row_bytes: int) -> int:
    """Rows of ``row_bytes`` float32 bytes each that make a piece; at least 1."""
    return max(1, PIECE_BYTES // max(1, row_bytes))


class Source(Protocol):
    """Where the values of a graph's parameters come from."""

    def blob(self, name: str, shape: tuple[int, ...]) -> Blob:
        """The float32 values of the parameter ``name``, which has to be of that shape."""


class Operator(Protocol):
    """An operator as a function: one output is returned bare, several (``outputs``) as a tuple.

    ``domain`` is that of the operator, where a name is in two.
    """

    @overload
    def __call__(
        self, *inputs: ir.Value | None, outputs: int, name: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]: ...

    @overload
    def __call__(self, *inputs: ir.Value | None, name: str = "", **attributes: Any) -> ir.Value: ...


class Graph:
    """Builds an ``ir.Graph``, or edits one (``Graph.editing``) at the node given to ``before``.

    Only a graph with a ``source`` can have parameters.
    """

    def __init__(self, name: str, source: Source | None = None) -> None:
        self.ir = ir.Graph([], [], nodes=[], opset_imports=dict(OPSETS), name=name)
        self._source = source
        self._scopes: list[str] = []
        self._cursor: ir.Node | None = None
        self._names: set[str] = set()

    @classmethod
    def editing(cls, model: ir.Model) -> Graph:
        """A builder over the graph of ``model``; names already there stay taken."""
        graph = cls.__new__(cls)
        graph.ir = model.graph
        graph._source = None
        graph._scopes = []
        graph._cursor = None
        graph._names = {node.name for node in model.graph if node.name}
        return graph

    # Values -----------------------------------------------------------------------------------

    def input(self, name: str, dtype: DTypeLike, dims: Sequence[Dimension]) -> ir.Value:
        """Declares a graph input; string dimensions are symbolic."""
        value = _typed_value(name, dtype, dims)
        self.ir.inputs.append(value)
        return value

    def output(
        self,
        value: ir.Value,
        name: str,
        dtype: DTypeLike,
        dims: list[Dimension],
        *,
        first: bool = False,
    ) -> None:
        """Declares ``value`` as the graph output ``name``, after those declared or ``first``."""
        value.name = name
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value.shape = ir.Shape(dims)
        self.ir.outputs.insert(0 if first else len(self.ir.outputs), value)

    def default(self, value: ir.Value, array: NDArray[Any]) -> None:
        """Makes a graph input optional: ``array`` is used when the caller does not feed it."""
        value.const_value = ir.Tensor(array, name=value.name)
        self.ir.initializers.add(value)

    def parameter(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """A learned float32 weight, named inside the open scope; its values are the source's.

        The same name returns the same value: layers may share a parameter.
        """
        name = self._scoped(name)
        existing = self.ir.initializers.get(name)
        if existing is not None:
            return existing
        assert self._source is not None, "a graph without a source has no parameters"
        return self.weight(name, shape, self._source.blob(name, shape))

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        rows: Rows | Blob,
        dtype: DTypeLike = np.float32,
    ) -> ir.Value:
        """A lazy initializer under the name given; goes to the external data file.

        The same name with the same blob returns the same value: layers may share a weight.
        """
        blob = rows if isinstance(rows, Blob) else Blob(rows)
        existing = self.ir.initializers.get(name)
        if existing is not None and isinstance(existing.const_value, Weight):
            if existing.const_value.blob is blob:
                return existing
        return self._initializer(Weight(name, shape, dtype, blob))

    def table(self, name: str, shape: Sequence[int], rows: Rows) -> ir.Value:
        """A float32 initializer that follows from the config; no parameter of the model."""
        weight = Weight(name, shape, np.float32, Blob(rows))
        weight.learned = False
        return self._initializer(weight)

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """A small initializer inside the model file; the same name returns the same value."""
        existing = self.ir.initializers.get(name)
        if existing is not None:
            return existing
        return self._initializer(ir.Tensor(np.asarray(array), name=name))

    def int64s(self, *numbers: int) -> ir.Value:
        """A constant int64 vector, e.g. axes or a shape."""
        return self.constant(
            np.array(numbers, np.int64), "ints." + ".".join(str(number) for number in numbers)
        )

    def _initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.ir.register_initializer(value)
        return value

    # Nodes ------------------------------------------------------------------------------------

    def __getattr__(self, operator: str) -> Operator:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        domain = "com.microsoft" if operator in MICROSOFT_OPERATORS else ""

        def call(
            *inputs: ir.Value | None,
            outputs: int | None = None,
            name: str = "",
            domain: str = domain,
            **attributes: Any,
        ) -> Any:
            results = self._node((domain, operator), inputs, outputs or 1, name, attributes)
            return results[0] if outputs is None else results

        return call

    def _node(
        self,
        kind: tuple[str, str],
        inputs: Sequence[ir.Value | None],
        outputs: int,
        name: str,
        attributes: dict[str, Any],
    ) -> tuple[ir.Value, ...]:
        """Adds one node of the (domain, operator); its outputs carry the node's name."""
        domain, operator = kind
        name = self._unique(self._scoped(name or operator))
        results = [ir.Value(name=name if i == 0 else f"{name}:{i}") for i in range(outputs)]
        node = ir.node(
            operator,
            list(inputs),
            attributes,
            domain=domain,
            outputs=results,
            name=name,
        )
        if self._cursor is None:
            self.ir.append(node)
        else:
            self.ir.insert_before(self._cursor, node)
        return tuple(results)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefixes the names of nodes and parameters made inside with ``name.``."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    @contextmanager
    def before(self, node: ir.Node, scope: str | None = None) -> Iterator[None]:
        """Places nodes made inside in front of ``node``, under its name as scope or another one."""
        self._cursor = node
        try:
            with self.scope(scope or node.name or node.op_type):
                yield
        finally:
            self._cursor = None

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Uses ``new`` wherever ``old`` is used; as an output of the graph it takes its name."""
        if old.is_graph_output():
            new.type, new.shape, new.name = old.type, old.shape, old.name
            old.name = f"{old.name}.replaced"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def _scoped(self, name: str) -> str:
        return ".".join([*self._scopes, name])

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def model(self) -> ir.Model:
        """The finished model; its weights are still unread."""
        return ir.Model(self.ir, ir_version=IR_VERSION, producer_name="pocketlm")


def _typed_value(name: str, dtype: DTypeLike, dims: Sequence[Dimension]) -> ir.Value:
    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype))),
        shape=ir.Shape(dims),
    )
