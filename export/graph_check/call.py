"""One node with what is known of its inputs: what a rule for an operator is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..folder import DecoderShape
from ..strict_json import quoted
from ..strict_json import shown as shown_value
from .facts import Fact, Span, Spans, shown
from .onnx_file import INT32, INT64, GraphRefused, Node, Tensor


class Call(NamedTuple):
    """The number of inputs and the attributes have been compared with the operator's."""

    node: Node
    given: list[Fact | None]  # one for each input, None where it is left out
    initializers: Mapping[str, Tensor]
    decoder: DecoderShape

    def has(self, index: int) -> bool:
        """Whether there is an input ``index``."""
        return index < len(self.given) and self.given[index] is not None

    def fact(self, index: int) -> Fact:
        """Of the input ``index``; GraphRefused where it is left out."""
        found = self.given[index] if index < len(self.given) else None
        if found is None:
            raise GraphRefused(f"no input {index}", "one")
        return found

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.node.attributes.get(name, default)
        assert isinstance(value, int)
        return value

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers; None where it is left out."""
        value = self.node.attributes.get(name)
        if value is None:
            return None
        assert isinstance(value, tuple)
        numbers = tuple(item for item in value if isinstance(item, int))
        if len(numbers) < len(value):
            raise GraphRefused(f"{name} {shown_value(value)}", "whole numbers")
        return numbers

    def elements(self, index: int) -> Spans:
        """Of a small input whose elements become sizes or axes; GraphRefused for others."""
        found = self.fact(index)
        if found.dtype not in (INT64, INT32) or found.elements is None or found.rank > 1:
            raise GraphRefused(
                f"sizes that are not known in {quoted(self.node.inputs[index])}",
                "a few whole numbers that follow from the length of the text",
            )
        return found.elements

    def element(self, index: int) -> Span:
        """Of an input with one element, as ``elements``."""
        found = self.elements(index)
        if len(found) != 1:
            raise GraphRefused(f"{len(found)} numbers in {quoted(self.node.inputs[index])}", "one")
        return found[0]

    def numbers(self, index: int) -> list[int]:
        """Of a small input whose elements are all exact; GraphRefused for others."""
        found = self.elements(index)
        if any(low != high or low != int(low) for low, high in found):
            raise GraphRefused(
                f"{', '.join(map(shown, found))} in {quoted(self.node.inputs[index])}",
                "fixed whole numbers",
            )
        return [int(low) for low, _ in found]


Rule = Callable[[Call], Fact | tuple[Fact, ...]]
