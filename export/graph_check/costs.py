"""What a run of a graph costs at most: operations, and bytes of values that exist at once.

Counted for ``facts.NEW`` tokens behind ``facts.PAST``, node by node. What is made of constants
alone is made when the graph is opened (ONNX Runtime folds it), and stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .facts import NEW, TOTAL, Fact
from .onnx_file import ITEM_BYTES, Graph, GraphRefused, Node

# Multiplications and other steps: so many, and for every byte of weights. A decoder multiplies each
# of its weights with each token, that is 2 × NEW for a byte of int4; what it does beside is less.
LEAST_OPERATIONS = 2e9  # about a second
OPERATIONS_PER_BYTE = 8 * NEW[1]
PRODUCTS = frozenset(
    {"FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"}
)


class Costs:
    """Adds up one graph; GraphRefused where it costs more than a decoder of its size."""

    def __init__(self, graph: Graph, data_bytes: int, largest_value: float) -> None:
        """``largest_value`` is what one value may take, in bytes: twice that all together."""
        self._most_operations = LEAST_OPERATIONS + OPERATIONS_PER_BYTE * data_bytes
        self._most_bytes = 2 * largest_value
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._uses.update(value.name for value in graph.outputs)  # which stay
        self._constants = {tensor.name for tensor in graph.initializers}
        self._constants -= {value.name for value in graph.inputs}
        self._bytes: dict[str, float] = {}  # of what exists
        self.operations = 0.0
        self.live_bytes = 0.0

    def add(self, node: Node, given: Sequence[Fact | None], results: Sequence[Fact]) -> None:
        """Counts ``node``, with what is known of its inputs and outputs."""
        self.operations += _operations(node, given, results)
        if self.operations > self._most_operations:
            raise GraphRefused(
                f"work for {self.operations:.1e} operations up to here",
                f"at most {self._most_operations:.1e} for {NEW[1]} new tokens",
            )
        for name, result in zip(node.outputs, results, strict=True):
            self._bytes[name] = result.most * ITEM_BYTES[result.dtype]
            self.live_bytes += self._bytes[name]
        if self.live_bytes > self._most_bytes:
            raise GraphRefused(
                f"{self.live_bytes:.1e} bytes of values that are needed at once",
                f"at most {self._most_bytes:.1e} for {NEW[1]} new tokens",
            )
        if all(name in self._constants for name in node.inputs if name):
            self._constants.update(node.outputs)
        self._free(node.inputs)

    def _free(self, names: Iterable[str]) -> None:
        for name in names:
            self._uses[name] -= 1
            if not self._uses[name] and name not in self._constants:
                self.live_bytes -= self._bytes.pop(name, 0)


def _operations(node: Node, given: Sequence[Fact | None], results: Sequence[Fact]) -> float:
    """Multiplications of a product or an attention; of other nodes, numbers that come and go."""
    made = sum(result.most for result in results)
    first = given[0] if given else None
    if first is not None and node.operator in PRODUCTS:
        return made * max(high for _, high in first.dims[-2:])
    if first is not None and node.operator == "GroupQueryAttention":
        return 2 * first.most * TOTAL[1]
    return made + sum(found.most for found in given if found is not None and found.rank)
