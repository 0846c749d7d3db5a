"""The masks of a traced graph: what is done to the scores, and what that hides.

A mask is not recognised by its nodes but by its numbers: they are computed with NumPy for several
lengths, up to the whole context, with and without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ..decoder_inputs import MASKED
from .bounded import LARGEST_RUN, BoundedEvaluator

HIDDEN = -1e8  # a score below this is hidden
LARGEST_MASK = 1 << 24  # elements of a constant that a mask is made of


class Refused(Exception):
    """Why a graph is left as it is."""


@dataclass
class Masks:
    """What is done to the scores before the softmax."""

    added: list[ir.Value] = field(default_factory=list)  # float
    shown: list[ir.Value] = field(default_factory=list)  # bool: False hides
    hidden: list[ir.Value] = field(default_factory=list)  # bool: True hides
    scaled: bool = False  # the scores are multiplied once more behind it

    @property
    def values(self) -> list[ir.Value]:
        return [*self.added, *self.shown, *self.hidden]

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        kinds = (self.added, self.shown, self.hidden)
        return tuple(tuple(id(value) for value in values) for values in kinds)


def is_plain(model: ir.Model, masks: Masks, context_length: int) -> bool:
    """Whether the mask is causal and hides padding, and no more than that.

    Raises Refused for one that shows the future, or depends on more than sizes and padding.
    """
    evaluate = MaskEvaluator(model, masks)
    plain = True
    for past, new, pad in ((0, 6, 0), (5, 1, 0), (4, 3, 2), (context_length - 3, 3, 0)):
        past, new, pad = max(past, 0), min(new, context_length), min(pad, max(past, 0))
        found = evaluate(past, new, pad)
        columns, rows = np.arange(past + new), np.arange(past, past + new)[:, None]
        future = np.broadcast_to(columns > rows, found.shape)
        hidden = np.broadcast_to((columns > rows) | (columns < pad), found.shape)
        if not (found[future] < HIDDEN).all():
            raise Refused("the mask shows tokens that come later")
        plain &= bool((found[hidden] < HIDDEN).all() and (found[~hidden] == 0).all())
    if masks.scaled and not plain:
        raise Refused("a mask that is more than causal is scaled with the scores")
    return plain


class MaskEvaluator:
    """Computes the mask of a graph with NumPy: called with sizes, it gives a (…, S, T) array."""

    def __init__(self, model: ir.Model, masks: Masks) -> None:
        self._masks = masks
        wanted = masks.values
        nodes, names = ancestors(model, wanted)
        self._inputs = names & {str(value.name) for value in model.graph.inputs}
        foreign = self._inputs - {"input_ids", "attention_mask", "position_ids"}
        if foreign:
            raise Refused(f"the mask depends on {', '.join(sorted(foreign))}")
        ids = {"input_ids", "position_ids"}
        values = [item for node in nodes if node.op_type != "Shape" for item in given(node)]
        if any(item.name in ids for item in values):
            raise Refused("the mask depends on the tokens, not only on how many there are")
        initializers = []
        for name in sorted(names & model.graph.initializers.keys()):
            tensor = model.graph.initializers[name].const_value
            assert tensor is not None
            if tensor.size > LARGEST_MASK:
                raise Refused(f"the mask depends on the weight {name}")
            initializers.append(onnx.numpy_helper.from_array(np.asarray(tensor.numpy()), name))
        inputs = [value for value in model.graph.inputs if value.name in self._inputs]
        graph = onnx.helper.make_graph(
            [ir.serde.serialize_node(node) for node in nodes],
            "mask",
            [ir.serde.serialize_value(value) for value in inputs],
            [
                onnx.helper.make_tensor_value_info(str(value.name), onnx.TensorProto.FLOAT, None)
                for value in wanted
            ],
            initializers,
        )
        opset = onnx.helper.make_opsetid("", model.opset_imports[""])
        proto = onnx.helper.make_model(graph, opset_imports=[opset])
        if any(node.domain for node in nodes):
            raise Refused("the mask depends on what the model computes")
        self._run = BoundedEvaluator(proto)

    def __call__(self, past: int, new: int, pad: int) -> NDArray[np.float32]:
        """With ``pad`` columns of left padding."""
        if new * (past + new) > LARGEST_RUN:
            raise Refused(f"the mask of {past + new:,} tokens is too large to be computed")
        mask = np.ones((1, past + new), np.int64)
        mask[:, :pad] = 0
        feeds = {
            "input_ids": np.zeros((1, new), np.int64),
            "attention_mask": mask,
            "position_ids": np.maximum(np.arange(past, past + new) - pad, 0)[None],
        }
        try:
            found: Any = self._run({name: feeds[name] for name in self._inputs})
        except Exception as error:
            raise Refused(f"the mask cannot be computed: {error}") from error
        total = np.zeros((1, 1, new, past + new), np.float32)
        added, shown = len(self._masks.added), len(self._masks.shown)
        with np.errstate(over="ignore"):  # two hidden places add up to -inf
            for part in found[:added]:
                total = total + part
        for condition in found[added : added + shown]:
            total = np.where(condition, total, MASKED)
        for condition in found[added + shown :]:
            total = np.where(condition, MASKED, total)
        return total


def given(node: ir.Node) -> list[ir.Value]:
    """The inputs that are there."""
    return [value for value in node.inputs if value is not None]


def ancestors(model: ir.Model, values: list[ir.Value]) -> tuple[list[ir.Node], set[str]]:
    """The nodes that ``values`` are computed with, in order, and all names among them."""
    seen: set[ir.Node] = set()
    names: set[str] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        names.add(str(value.name))
        node = value.producer()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += given(node)
    return [node for node in model.graph if node in seen], names
