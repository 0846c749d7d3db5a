"""What reads an int8 cache in float32 and gives the new rows, and whether an attention does.

    past → Slice to P → Cast → Mul scale → attention → Slice from P on → Div scale → QuantizeLinear

The kernel reads as much of the past as the mask says that there is, whatever it was given: so the
past is exactly that. The nodes are those of ``quantize.int8_rows``. Letters: P past tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..folder import NEW_ROWS
from ..strict_json import quoted
from .lengths import MASK, Whole, is_made, made
from .microsoft import check_scales
from .onnx_file import FLOAT, GraphRefused, Node, Tensor

END = (1 << 63) - 1
_TOKENS = Whole(2, (1,))  # the axis
PAST_LENGTH = made(
    "Sub", made("Shape", MASK, start=1, end=2), made("Shape", "input_ids", start=1, end=2)
)  # (1,)


def check_rows(
    node: Node,
    layer: int,
    dims: tuple[int, ...],
    producers: Mapping[str, Node],
    initializers: Mapping[str, Tensor],
) -> None:
    """Raises GraphRefused unless the attention ``node`` is that of ``layer`` in this form.

    ``dims`` are those of a scale.
    """
    for number, kind in enumerate(("key", "value")):
        past, present = node.inputs[3 + number], node.outputs[1 + number]
        name = _second_input(producers.get(past))
        scale = initializers.get(name)
        if scale is None or (scale.dtype, scale.dims) != (FLOAT, dims):
            raise GraphRefused(f"the scale {quoted(name)} of a cache", f"float32 {dims}")
        check_scales(scale)
        kept = made(
            "Slice", f"past_key_values.{layer}.{kind}", Whole(0, (1,)), PAST_LENGTH, _TOKENS
        )
        copy = made("Mul", made("Cast", kept, to=FLOAT), name)
        if not is_made(past, copy, producers, initializers):
            raise GraphRefused(f"the past {quoted(past)}", f"the {kind}s that layer {layer} has")
        rows = made("Slice", present, PAST_LENGTH, Whole(END, (1,)), _TOKENS)
        output = producers[f"{NEW_ROWS}.{layer}.{kind}"]
        steps = made("Div", rows, name)
        if output.operator != "QuantizeLinear" or not is_made(
            output.inputs[0], steps, producers, initializers
        ):
            raise GraphRefused(
                f"{quoted(output.outputs[0])} of others", f"the new {kind}s of layer {layer}"
            )


def _second_input(node: Node | None) -> str:
    return node.inputs[1] if node is not None and len(node.inputs) > 1 else ""
