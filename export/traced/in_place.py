"""Attention over a growing cache becomes GroupQueryAttention over a cache in place.

    keys   = Concat(past_key, k, axis=2)        (B, K, T, E)          values likewise
    scores = MatMul(q, Transpose(repeat(keys))) (B, H, S, T)          · or / constants, soft cap
    scores = Where(causal, scores, -huge) and + mask                  each where it is there
    x      = Reshape(Transpose(MatMul(Softmax(scores), repeat(values))))       (B, S, H·E)
  ->
    x, present_key, present_value =
        GroupQueryAttention(q, k, v, past_key, past_value, seqlens_k, total, bias)

``repeat`` gives every key/value head to H / K query heads in a row. Rotary embeddings, norms and
whatever else makes q, k and v stay as they were traced.

A plain causal mask (``masks``) gives way to the one that declared graphs have. Any other one that
hides the future (a window, ALiBi) stays as bias.

All layers are rewritten or none. The output head then sees ``num_logits_to_keep`` rows only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from ..decoder_inputs import MASKED, mask_lengths
from ..folder import DecoderShape
from ..graph import Graph, Weight
from ..graph_pass import Outcome
from ..layers import last_rows
from .masks import HIDDEN, Masks, Refused, is_plain
from .sizes import BATCH, NEW, TOTAL, broadcast, multiply
from .symbols import Symbols, attribute

KEYS_TURNED = ((0, 1, 3, 2), (0, 2, 1))
ATTENTION = "attention"  # what is skipped where it cannot be rewritten
HEAD_STEP = 8  # GroupQueryAttention wants heads of a multiple of this


@dataclass
class Attention:
    """One layer's attention as it was found. Values with heads are (B, heads, S, E)."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    output: ir.Value  # (B, S, H·E)
    num_heads: int
    scale: float
    softcap: float
    masks: Masks


class AttendInPlace:
    """Rewrites the attention of a simplified decoder of ``shape``."""

    def __init__(self, shape: DecoderShape) -> None:
        self._shape = shape

    def apply(self, model: ir.Model) -> Outcome:
        """Changes every layer, or skips ``ATTENTION`` as a whole."""
        try:
            return Outcome(changed=_Rewriting(model, self._shape).run())
        except Refused as refused:
            return Outcome(skipped={ATTENTION: str(refused)})


class _Rewriting:
    """One run over one model: finds everything first, then changes it."""

    def __init__(self, model: ir.Model, shape: DecoderShape) -> None:
        self._model = model
        self._shape = shape
        self._symbols = Symbols(model)
        for node in model.graph:
            self._symbols.visit(node)
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        self._outputs = {str(value.name): value for value in model.graph.outputs}
        self._graph = Graph.editing(model)

    def run(self) -> list[str]:
        """The layers that were changed; raises Refused before anything is."""
        if self._shape.head_size % HEAD_STEP:
            raise Refused(f"heads of {self._shape.head_size}, expected a multiple of {HEAD_STEP}")
        head = self._head()
        layers = [self._match(layer) for layer in range(self._shape.num_layers)]
        distinct = {layer.masks.key: layer.masks for layer in layers}
        plain = {
            key: is_plain(self._model, masks, self._shape.context_length)
            for key, masks in distinct.items()
        }

        first = next(iter(self._model.graph))
        with self._graph.before(first, "mask"):
            ids, mask = self._inputs["input_ids"], self._inputs["attention_mask"]
            _, seqlens_k, total, bias = mask_lengths(self._graph, ids, mask)
        biases = {key: bias for key in distinct if plain[key]}
        names = [f"layers.{number}" for number in range(len(layers))]
        for name, layer in zip(names, layers, strict=True):
            node = layer.output.producer()
            assert node is not None
            with self._graph.before(node, name):
                if layer.masks.key not in biases:
                    biases[layer.masks.key] = self._kept(layer.masks, layer.num_heads)
                self._emit(layer, seqlens_k, total, biases[layer.masks.key])
        self._keep_rows(head)
        common.RemoveUnusedNodesPass()(self._model)
        return names

    # Finding ----------------------------------------------------------------------------------

    def _match(self, layer: int) -> Attention:
        shape, name = self._shape, f"layer {layer}"
        sides = [self._new_rows(layer, kind) for kind in ("key", "value")]
        (past_key, keys, key), (past_value, values, value) = sides
        product, key_scale = self._repeated(keys, name, transposed=True)
        query = _given(product.inputs[0])
        split = query.producer()
        if split is not None and self._refolds(split):
            query = _given(split.inputs[0])
        num_heads = self._symbols.size(query, 1)
        sizes = (BATCH, num_heads, NEW, shape.head_size)
        if not isinstance(num_heads, int) or self._symbols.dims.get(query) != sizes:
            raise Refused(f"{name}: queries of {self._symbols.dims.get(query)}, expected {sizes}")
        softmax, scale, softcap, masks = self._scores(product.outputs[0], name)
        weighted = only_use(self._refolded(softmax.outputs[0]))
        if self._repeated(values, name, transposed=False)[0] is not weighted:
            raise Refused(f"{name}: the softmax does not weigh the values")
        return Attention(
            query=query,
            key=key,
            value=value,
            past=(past_key, past_value),
            present=(keys, values),
            output=self._joined(self._refolded(weighted.outputs[0]), num_heads, name),
            num_heads=num_heads,
            scale=scale * key_scale,
            softcap=softcap,
            masks=masks,
        )

    def _new_rows(self, layer: int, kind: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(past, all, new) of a layer's keys or values."""
        name = f"past_key_values.{layer}.{kind}"
        past, rows = self._inputs[name], self._outputs[f"present.{layer}.{kind}"]
        node = rows.producer()
        if node is None or node.op_type != "Concat" or attribute(node, "axis", 0) not in (2, -2):
            raise Refused(f"{rows.name} is made by {node and node.op_type}, expected Concat")
        first, *others = node.inputs
        if first is not past or len(others) != 1 or others[0] is None or len(past.uses()) != 1:
            raise Refused(f"{name} is used otherwise than in front of new rows")
        sizes = (BATCH, self._shape.kv_heads, NEW, self._shape.head_size)
        if self._symbols.dims.get(others[0]) != sizes:
            raise Refused(f"{name}: the sizes of its new rows are not known")
        return past, rows, others[0]

    def _repeated(self, value: ir.Value, name: str, *, transposed: bool) -> tuple[ir.Node, float]:
        """The product that takes all keys or values as second factor, and their own scale."""
        kv_heads, size = self._shape.kv_heads, self._shape.head_size
        allowed = {
            "Unsqueeze": (BATCH, kv_heads, 1, TOTAL, size),
            "Expand": (BATCH, kv_heads, None, TOTAL, size),
            "Reshape": (BATCH, None, TOTAL, size),
            "Transpose": (BATCH, None, size, TOTAL),
        }
        flat = (multiply(BATCH, kv_heads), size, TOTAL)  # keys, transposed
        scale = 1.0
        while (node := only_use(value)).op_type != "MatMul":
            factor = self._factor(node, value)
            if factor is None and not self._refolds(node):
                expected = allowed.get(node.op_type, ())
                dims = self._symbols.dims.get(node.outputs[0])
                turned = attribute(node, "perm", KEYS_TURNED[0]) in KEYS_TURNED
                if not turned or not (fits(dims, expected) or fits(dims, flat)):
                    raise Refused(f"{name}: {value.name} goes into {node.op_type} {dims}")
            value = node.outputs[0]
            scale *= factor or 1.0
        last = (size, TOTAL) if transposed else (TOTAL, size)
        dims = self._symbols.dims.get(value, ())
        if node.inputs[1] is not value or dims[-2:] != last:
            raise Refused(f"{name}: {value.name} is not the second factor of a product")
        return node, scale

    def _refolds(self, node: ir.Node) -> bool:
        """Whether ``node`` only joins batch and heads, (B, H, …) -> (B·H, …), or splits them."""
        ends = [self._symbols.dims.get(_given(v)) for v in (node.inputs[0], node.outputs[0])]
        if node.op_type != "Reshape" or None in ends:
            return False
        short, long = sorted((dims for dims in ends if dims is not None), key=len)
        return (len(short), len(long)) == (3, 4) and short == (multiply(*long[:2]), *long[2:])

    def _refolded(self, value: ir.Value) -> ir.Value:
        node = only_use(value)
        return node.outputs[0] if self._refolds(node) else value

    def _factor(self, node: ir.Node, value: ir.Value) -> float | None:
        """c of value · c or value / c with a constant c."""
        if node.op_type not in ("Mul", "Div"):
            return None
        others = [item for item in node.inputs if item is not value]
        numbers = self._symbols.numbers(others[0]) if len(others) == 1 else None
        if numbers is None or len(numbers) != 1:
            return None
        if node.op_type == "Mul":
            return float(numbers[0])
        return 1 / float(numbers[0]) if node.inputs[0] is value else None

    def _scores(self, value: ir.Value, name: str) -> tuple[ir.Node, float, float, Masks]:
        """(softmax, scale, soft cap or 0, masks) of the scores ``value``."""
        scale, before_cap, masks = 1.0, 0.0, Masks()
        while (node := only_use(value)).op_type != "Softmax":
            factor = self._factor(node, value)
            others = [item for item in node.inputs if item is not value]
            if factor is not None and factor > 0:
                scale *= factor
                masks.scaled |= bool(masks.values)
            elif node.op_type == "Tanh" and not before_cap and not masks.values:
                before_cap, scale = scale, 1.0
            elif node.op_type == "Add" and len(others) == 1:
                masks.added.append(_given(others[0]))
            elif node.op_type == "Where" and node.inputs[1] is value and self._huge(node.inputs[2]):
                masks.shown.append(_given(node.inputs[0]))
            elif node.op_type == "Where" and node.inputs[2] is value and self._huge(node.inputs[1]):
                masks.hidden.append(_given(node.inputs[0]))
            elif not (self._refolds(node) or (node.op_type == "Max" and self._huge(others[0]))):
                raise Refused(f"{name}: the scores go into {node.op_type}")
            value = node.outputs[0]
        if attribute(node, "axis", -1) not in (-1, 3):
            raise Refused(f"{name}: a softmax over axis {attribute(node, 'axis', -1)}")
        return (node, before_cap * scale, scale, masks) if before_cap else (node, scale, 0.0, masks)

    def _huge(self, value: ir.Value | None) -> bool:
        numbers = self._symbols.numbers(value)
        return numbers is not None and max(numbers) < HIDDEN

    def _joined(self, value: ir.Value, num_heads: int, name: str) -> ir.Value:
        """The heads side by side again."""
        transpose = only_use(value)
        if transpose.op_type != "Transpose" or attribute(transpose, "perm", ()) != (0, 2, 1, 3):
            raise Refused(f"{name}: the heads go into {transpose.op_type}")
        joined = only_use(transpose.outputs[0])
        dims = self._symbols.dims.get(joined.outputs[0])
        if joined.op_type != "Reshape" or not fits(
            dims, (BATCH, NEW, num_heads * self._shape.head_size)
        ):
            raise Refused(f"{name}: the heads go into {joined.op_type} {dims}")
        return joined.outputs[0]

    def _head(self) -> ir.Node:
        """The product of the output head, (B, S, D) times a weight."""
        value: ir.Value | None = self._outputs["logits"]
        while value is not None and (node := value.producer()) is not None:
            if node.op_type in ("MatMul", "FusedMatMul") and isinstance(
                node.inputs[1] and node.inputs[1].const_value, Weight
            ):
                x = node.inputs[0]
                if x is None or not fits(self._symbols.dims.get(x), (BATCH, NEW, None)):
                    break
                return node
            # What comes after the head: a bias, a scale, a soft cap, each row by itself.
            constant = [item for item in node.inputs if item is not None and item.is_initializer()]
            rest = [item for item in node.inputs if item not in constant]
            if node.op_type not in ("Add", "Mul", "Div", "Tanh") or len(rest) != 1:
                break
            value = rest[0]
        raise Refused("the logits do not come from a product with a constant weight")

    # Masks ------------------------------------------------------------------------------------

    def _with_heads(self, value: ir.Value, num_heads: int) -> ir.Value:
        """(B·H, …) as (B, H, …)."""
        if self._symbols.rank(value) != 3:
            return value
        g = self._graph
        shape = g.Concat(g.int64s(-1, num_heads), g.Shape(value, start=1), axis=0)
        return g.Reshape(value, shape)

    def _kept(self, masks: Masks, num_heads: int) -> ir.Value:
        """The traced mask as a bias: (B or 1, H or 1, S, T), finite."""
        g = self._graph
        lowest = g.constant(MASKED, "masked")
        parts = [self._with_heads(value, num_heads) for value in masks.added]
        zero = g.constant(np.float32(0), "float32.0")
        parts += [g.Where(condition, zero, lowest) for condition in masks.shown]
        parts += [g.Where(condition, lowest, zero) for condition in masks.hidden]
        total = parts[0]
        for part in parts[1:]:
            total = g.Add(total, part)
        dims = broadcast([self._symbols.dims.get(value) for value in masks.values])
        bias: ir.Value = g.Max(total, lowest, name="bias")
        if dims is not None and dims[-2:] == (NEW, TOTAL):
            return bias
        ids, mask = self._inputs["input_ids"], self._inputs["attention_mask"]
        rows, columns = g.Shape(ids, start=1, end=2), g.Shape(mask, start=1, end=2)
        return g.Expand(bias, g.Concat(g.int64s(1, 1), rows, columns, axis=0))

    # Changing ---------------------------------------------------------------------------------

    def _emit(self, layer: Attention, seqlens_k: ir.Value, total: ir.Value, bias: ir.Value) -> None:
        g = self._graph
        qkv = [self._merged(value) for value in (layer.query, layer.key, layer.value)]
        packed = self._packed(qkv)
        attended, *present = g.GroupQueryAttention(
            *((packed, None, None) if packed is not None else qkv),
            *layer.past,
            seqlens_k,
            total,
            None,
            None,
            None,
            bias,
            outputs=3,
            name="attention",
            num_heads=layer.num_heads,
            kv_num_heads=self._shape.kv_heads,
            scale=layer.scale,
            **({"softcap": layer.softcap} if layer.softcap else {}),
        )
        g.replace(layer.output, attended)
        for old, new in zip(layer.present, present, strict=True):
            g.replace(old, new)

    def _merged(self, value: ir.Value) -> ir.Value:
        """(B, heads, S, E) -> (B, S, heads·E), by leaving out what split it where that is all."""
        transpose = value.producer()
        if transpose is not None and transpose.op_type == "Transpose":
            split = transpose.inputs[0].producer() if transpose.inputs[0] else None
            if split is not None and split.op_type == "Reshape" and split.inputs[0] is not None:
                dims = self._symbols.dims.get(value, ())
                width = dims[1] * dims[3] if len(dims) == 4 else None  # type: ignore[operator]
                if attribute(transpose, "perm", ()) == (0, 2, 1, 3) and fits(
                    self._symbols.dims.get(split.inputs[0]), (BATCH, NEW, width)
                ):
                    return split.inputs[0]
        g = self._graph
        heads = g.Transpose(value, perm=[0, 2, 1, 3])  # (B, S, heads, E)
        return g.Reshape(heads, g.int64s(0, 0, -1), name="merged")

    def _packed(self, qkv: list[ir.Value]) -> ir.Value | None:
        """What q, k and v were split from, if it was nothing but them along the last axis."""
        node = qkv[0].producer()
        if node is None or node.op_type != "Split" or list(node.outputs) != qkv:
            return None
        return node.inputs[0] if attribute(node, "axis", 0) in (2, -1) else None

    def _keep_rows(self, head: ir.Node) -> None:
        """Lets the output head see the last rows only."""
        g = self._graph
        keep = g.input("num_logits_to_keep", np.int64, [])
        g.default(keep, np.array(0, np.int64))
        assert head.inputs[0] is not None
        with g.before(head, "head"):
            rows = last_rows(g, head.inputs[0], keep)
        head.replace_input_with(0, rows)


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def only_use(value: ir.Value) -> ir.Node:
    """The only node that takes ``value``; Refused if there are others."""
    uses = list(value.uses())
    if len(uses) != 1:
        raise Refused(f"{value.name} is used {len(uses)} times, expected once")
    return uses[0].node


def fits(dims: Any, expected: Any) -> bool:
    """Whether ``dims`` are the ``expected`` ones, where None stands for any."""
    return (
        dims is not None
        and len(dims) == len(expected)
        and all(
            wanted is None or size == wanted for size, wanted in zip(dims, expected, strict=True)
        )
    )
