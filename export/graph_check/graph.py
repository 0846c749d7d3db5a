"""The whole question: is the graph of a model folder one that we can have written?

Asked before ONNX Runtime, or anything else, opens the file. A graph of another origin could end the
process (kernels trust attributes), never end, or read other files. What is compared:

- the manifest's sizes with each other, and with the graph's inputs, outputs and weights
- where tensors lie: in the graph's own file whole, or within ``model.onnx_data``, none over
  another; those of a graph for many tokens at a time also within ``model_prefill.onnx_data``
- every node with ``operators``: domain, name, inputs, outputs, attributes; its inputs exist before
- what every node can make of a short text (``facts``): nothing huge, nor long to make (``costs``)

Graphs that a tracer made may have more operators than declared ones. What is not covered: what
more tokens than a short text take, and lengths beyond it as divisors (ONNX Runtime refuses to
divide whole numbers by 0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from ..folder import NEW_ROWS, ModelFolder, cache_names
from ..manifest import DECODER, FLOAT32, GROWING, INT8_KV_PREFILL, DecoderShape, GraphEntry
from ..manifest import INT8 as INT8_CACHE
from ..strict_json import quoted
from .call import Call
from .costs import Costs
from .facts import NEW, ONE, PAST, TOTAL, TRUTH, Fact, constant, fact, shown
from .graph_file import foreign, read_graph_file
from .lengths import check_lengths
from .onnx_file import (
    FLOAT,
    INT8,
    INT64,
    ITEM_BYTES,
    Graph,
    GraphRefused,
    Node,
    Tensor,
    Value,
    read_graph,
    type_name,
)
from .operators import ATTENTION, DECLARED, GROWN, ROWS, TRACED
from .rows import check_rows
from .weights import LARGEST_RANK, check_apart, check_tensor, place_of

OPSETS = range(18, 24)
IR_VERSIONS = range(7, 14)
KEEP, TEXT_LENGTH = "num_logits_to_keep", "text_length"
OPTIONAL = {KEEP, TEXT_LENGTH}  # inputs with a default
# The largest of each size that is taken for one: several times what any published decoder has.
LARGEST = DecoderShape(
    vocab_size=1 << 24,
    context_length=(1 << 31) - 1,
    hidden_size=1 << 20,
    num_layers=1 << 12,
    num_heads=1 << 16,
    kv_heads=1 << 16,
    head_size=1 << 16,
)
LARGEST_WIDTH = 1 << 20  # heads · head size
LARGEST_LENGTH = 50_000  # nodes; a decoder of 126 layers (405B) in int8 has 9,000
# Bytes of what a node makes of ``facts.NEW`` tokens, unless a weight takes more than half of it.
LARGEST_VALUE = 1 << 30
CACHED = {FLOAT32: FLOAT, INT8_CACHE: INT8}  # what keys and values are in a graph


def check_graph(folder: ModelFolder, name: str = DECODER, data: bytes | None = None) -> None:
    """Raises ModelFolderError unless that graph of ``folder`` is one that we can have written.

    ``data`` is what its file holds, if that was read before.
    """
    try:
        inspect(folder, name, data)
    except GraphRefused as refused:
        raise foreign(folder.graph_file(name), refused) from refused


def inspect(folder: ModelFolder, name: str = DECODER, data: bytes | None = None) -> None:
    """As ``check_graph``, but raises GraphRefused."""
    graph = read_graph(read_graph_file(folder.graph_file(name)) if data is None else data)
    _check_versions(graph)
    if len(graph.nodes) > LARGEST_LENGTH:
        raise GraphRefused(f"{len(graph.nodes):,} nodes", f"at most {LARGEST_LENGTH:,}")
    rows = name == INT8_KV_PREFILL
    Inspection(graph, folder.shape, folder.graph(name), rows).run(folder.data_bytes(name))


def _check_versions(graph: Graph) -> None:
    if graph.ir_version not in IR_VERSIONS:
        raise GraphRefused(
            f"IR version {graph.ir_version}", f"{IR_VERSIONS[0]} to {IR_VERSIONS[-1]}"
        )
    others = graph.opsets.keys() - {"", "com.microsoft"}
    if others:
        raise GraphRefused(f"operators of {quoted(min(others))}", "of ONNX and com.microsoft alone")
    if graph.opsets.get("", 0) not in OPSETS or graph.opsets.get("com.microsoft", 1) != 1:
        raise GraphRefused(f"opsets {graph.opsets}", f"{OPSETS[0]} to {OPSETS[-1]} and 1")


class Inspection:
    """One pass over one graph; ``facts`` has all values that it has come past.

    One of ``rows`` reads the cache in float32, and gives the new rows alone.
    """

    def __init__(
        self, graph: Graph, decoder: DecoderShape, entry: GraphEntry, rows: bool = False
    ) -> None:
        self._graph = graph
        self._decoder = decoder
        self._traced = entry.traced is not None
        self._growing = entry.cache.layout == GROWING
        self._cached = CACHED[entry.cache.dtype]
        self._rows = rows
        self._operators = GROWN if self._growing else TRACED if self._traced else DECLARED
        if rows:
            self._operators = self._operators | ROWS
        self.facts: dict[str, Fact] = {}
        self._producers: dict[str, Node] = {}
        self._initializers: dict[str, Tensor] = {}
        self._largest = LARGEST_VALUE
        self._uses: Counter[str] = Counter()

    def run(self, data_bytes: Mapping[str, int]) -> None:
        """Raises GraphRefused at the first thing that we do not write.

        ``data_bytes`` are the files that weights may be in, with their sizes.
        """
        self._check_sizes()
        self._take_inputs()
        self._take_initializers(data_bytes)
        self.costs = Costs(self._graph, sum(data_bytes.values()), self._largest)
        for node in self._graph.nodes:
            try:
                self._visit(node)
            except GraphRefused as refused:
                place = f"the node {quoted(node.name)} ({quoted(node.operator)[1:-1]})"
                raise GraphRefused(f"{refused.found} in {place}", refused.expected) from refused
        self._check_outputs()
        for value in self._graph.values:
            _check_value(value)
        if self._rows:
            self._check_rows()
        elif not self._growing:
            self._check_in_place()
        if not self._traced:
            self._check_embedding()

    # Sizes and inputs -------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        decoder = self._decoder
        for name, most in vars(LARGEST).items():
            if getattr(decoder, name) > most:
                raise GraphRefused(f"{name} {getattr(decoder, name)} in the manifest", f"{most}")
        width = decoder.num_heads * decoder.head_size
        if width > LARGEST_WIDTH or decoder.num_heads < decoder.kv_heads:
            raise GraphRefused(
                f"{decoder.num_heads} heads and {decoder.kv_heads} key/value heads of "
                f"{decoder.head_size} in the manifest",
                f"at most {LARGEST_WIDTH} together, and no more key/value heads than heads",
            )
        if not self._growing and decoder.num_heads % decoder.kv_heads:
            raise GraphRefused(
                f"{decoder.num_heads} heads for {decoder.kv_heads} key/value heads in the manifest",
                "a multiple",
            )

    def _take_inputs(self) -> None:
        given = {value.name: value for value in self._graph.inputs}
        needed = {"input_ids", "attention_mask", *(name for name, _ in self._caches())}
        needed |= set() if self._growing else {KEEP}
        positions = {"position_ids"}  # a tracer leaves them out where nothing asks for them
        wrong = (needed if self._traced else needed | positions) - given.keys()
        wrong |= given.keys() - needed - positions - (set() if self._traced else {TEXT_LENGTH})
        outputs = {value.name for value in self._graph.outputs}
        wrong |= outputs ^ {"logits", *(name for _, name in self._caches())}
        if wrong or len(given) < len(self._graph.inputs) or len(outputs) < len(self._graph.outputs):
            raise GraphRefused(
                "inputs or outputs that differ from the manifest in "
                f"{', '.join(map(quoted, sorted(wrong)[:4])) or 'a name twice'}",
                f"those of a decoder of {self._decoder.num_layers} layers",
            )
        decoder = self._decoder
        kv, size = decoder.kv_heads, decoder.head_size
        for name, value in given.items():
            _check_value(value)
            if name == KEEP:
                found = fact(INT64, (), (0, NEW[1]))
            elif name == TEXT_LENGTH:
                found = fact(INT64, (), (0, decoder.context_length))
            elif name == "attention_mask":
                found = fact(INT64, (ONE, TOTAL), TRUTH)
            elif name in ("input_ids", "position_ids"):
                most = decoder.vocab_size if name == "input_ids" else decoder.context_length
                found = fact(INT64, (ONE, NEW), (0, most - 1))
            else:
                found = fact(self._cached, (ONE, (kv, kv), PAST, (size, size)))
            numbers = self._cache_sizes if found.rank == 4 else {}
            _check_declared(value, found.dtype, found.rank, numbers)
            self.facts[name] = found

    def _caches(self) -> list[tuple[str, str]]:
        # One layer more than there can be is enough to differ.
        layers = min(self._decoder.num_layers, len(self._graph.inputs))
        return cache_names(layers, NEW_ROWS) if self._rows else cache_names(layers)

    @property
    def _cache_sizes(self) -> dict[int, int]:
        """Dimensions of keys and values that are numbers; of ``rows`` there is one sequence."""
        sizes = {1: self._decoder.kv_heads, 3: self._decoder.head_size}
        return {0: 1, **sizes} if self._rows else sizes

    # Tensors ----------------------------------------------------------------------------------

    def _take_initializers(self, data_bytes: Mapping[str, int]) -> None:
        ranges: set[tuple[str, int, int]] = set()
        for tensor in self._graph.initializers:
            name = tensor.name
            taken = name in self._initializers or name in self.facts.keys() - OPTIONAL
            if not name or taken:
                raise GraphRefused(f"the weight {quoted(name)} twice or over an input", "it once")
            length = check_tensor(tensor)
            if tensor.external:
                ranges.add(place_of(tensor, length, data_bytes))
            self._initializers[name] = tensor
            if name not in OPTIONAL:  # what a caller may replace is no constant
                self.facts[name] = constant(tensor)
            self._largest = max(self._largest, 2 * 4 * math.prod(tensor.dims))  # as float32
        check_apart(ranges)
        for name in OPTIONAL & self.facts.keys() if not self._growing else ():
            default = self._initializers.get(name)
            if default is None or default[1:4] != (INT64, (), bytes(8)):
                raise GraphRefused(f"another default of {name}", "0")

    # Nodes ------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        operator = self._operators.get((node.domain, node.operator))
        if operator is None:
            name = f"{node.domain}::{node.operator}" if node.domain else node.operator
            kind = "traced" if self._traced else "declared"
            raise GraphRefused(f"the operator {quoted(name)}", f"one of {kind} decoders")
        operator.check(node)
        given = [self._given(name) for name in node.inputs]
        self._uses.update(node.inputs)
        made = operator.rule(Call(node, given, self._initializers, self._decoder))
        results = (made,) if isinstance(made, Fact) else made
        for name, result in zip(node.outputs, results, strict=True):
            if not name or name in self.facts:
                raise GraphRefused(
                    f"the output {quoted(name)} twice or without a name", "a new name"
                )
            if result.rank > 2 * LARGEST_RANK:
                raise GraphRefused(f"{result.rank} dimensions", f"at most {2 * LARGEST_RANK}")
            if not result.most * ITEM_BYTES[result.dtype] <= self._largest:
                dims = " × ".join(map(shown, result.dims))
                raise GraphRefused(
                    f"up to {shown((result.most,) * 2)} numbers ({dims})",
                    f"at most {self._largest:,} bytes for {NEW[1]} new tokens",
                )
            self.facts[name] = result
            self._producers[name] = node
        self.costs.add(node, given, results)

    def _given(self, name: str) -> Fact | None:
        if not name:
            return None
        found = self.facts.get(name)
        if found is None:
            raise GraphRefused(f"the input {quoted(name)} that nothing has made", "one that exists")
        return found

    # The whole --------------------------------------------------------------------------------

    def _check_outputs(self) -> None:
        decoder = self._decoder
        for value in self._graph.outputs:
            found = self.facts.get(value.name)
            if found is None or value.name not in self._producers:
                raise GraphRefused(f"no node that makes {value.name}", "one")
            logits = value.name == "logits"
            dtype = FLOAT if logits else self._cached
            exact = {2: decoder.vocab_size} if logits else self._cache_sizes
            rank = 3 if logits else 4
            if (
                found.dtype != dtype
                or found.rank != rank
                or any(found.dims[axis] != (size, size) for axis, size in exact.items())
            ):
                raise GraphRefused(
                    f"{value.name} of {' × '.join(map(shown, found.dims))}",
                    f"{rank} dimensions of {type_name(dtype)} with {_listed(exact)}",
                )
            if value.dtype or value.dims is not None:  # early folders do not declare the logits
                _check_declared(value, dtype, rank, exact)

    def _check_in_place(self) -> None:
        """One buffer is past and present at once, so nothing but attention may touch it."""
        checked = set()
        for past, present in self._caches():
            node = self._producers[present]
            if node.operator != "GroupQueryAttention" or self._uses[past] != 1:
                raise GraphRefused(f"{past} used by others than its attention", "a cache in place")
            if node.inputs[5:7] not in checked:
                check_lengths(node, self._producers, self._initializers)
                checked.add(node.inputs[5:7])

    def _check_rows(self) -> None:
        """The past is read up to where it ends, and what comes out are the rows behind it."""
        attentions = [
            node for node in self._graph.nodes if (node.domain, node.operator) == ATTENTION
        ]
        if len(attentions) != self._decoder.num_layers:
            raise GraphRefused(f"{len(attentions)} attentions", f"{self._decoder.num_layers}")
        scale = 1, self._decoder.kv_heads, 1, self._decoder.head_size
        for layer, node in enumerate(attentions):
            check_rows(node, layer, scale, self._producers, self._initializers)
            check_lengths(node, self._producers, self._initializers)
        if wrong := [past for past, _ in self._caches() if self._uses[past] != 1]:
            raise GraphRefused(f"{wrong[0]} used by others than its attention", "one use")

    def _check_embedding(self) -> None:
        """Token ids look up rows of the manifest's size: no id is out of range.

        Packed rows are looked up with what fills their last block, and cut afterwards.
        """
        decoder = self._decoder
        tables = [
            node
            for node in self._graph.nodes
            if node.inputs[1:2] == ("input_ids",) and node.operator.startswith("Gather")
        ]
        rows = {self.facts[node.inputs[0]].dims[0] for node in tables}
        widths = {self.facts[node.outputs[0]].dims[-1] for node in tables}
        expected = decoder.vocab_size, decoder.hidden_size
        blocks = [node.attributes.get("block_size", 1) for node in tables]
        wide = {-(-expected[1] // size) * size for size in blocks if isinstance(size, int)}
        if (rows, widths) != ({expected[:1] * 2}, {(width, width) for width in wide}):
            found = f"{' '.join(map(shown, rows))} × {' '.join(map(shown, widths))}"
            raise GraphRefused(
                f"an embedding of {found}", f"{expected[0]} × {expected[1]} as in the manifest"
            )


def _check_value(value: Value) -> None:
    """What a file says of a value: a dtype we know, and sizes that are some."""
    numbers = [dim for dim in value.dims or () if isinstance(dim, int)]
    if not value.name or value.dtype not in ITEM_BYTES or min(numbers, default=0) < 0:
        raise GraphRefused(
            f"a value {quoted(value.name)} of {type_name(value.dtype)} {numbers[:9]}",
            "a dense tensor",
        )


def _check_declared(value: Value, dtype: int, rank: int, numbers: dict[int, int]) -> None:
    """Compares an input or output as it is declared; sizes that vary are no numbers."""
    dims = value.dims
    if (value.dtype, len(dims or ())) != (dtype, rank) or {
        axis: size for axis, size in enumerate(dims or ()) if isinstance(size, int)
    } != numbers:
        raise GraphRefused(
            f"{value.name} of {type_name(value.dtype)} {dims!r:.80}",
            f"{rank} dimensions of {type_name(dtype)} with {_listed(numbers)}",
        )


def _listed(sizes: dict[int, int]) -> str:
    listed = " and ".join(f"{size} in dimension {axis}" for axis, size in sizes.items())
    return listed or "no fixed size"
