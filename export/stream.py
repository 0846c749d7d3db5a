"""The residual stream of a decoder: what every part of a layer reads, and adds its branch to.

    x = stream.rms_norm("input_layernorm")
    stream.add(branch)                               # only remembered
    x = stream.rms_norm("post_attention_layernorm")  # adds it and norms the sum, in one node

ONNX Runtime has fused nodes for a residual add and the norm behind it; a branch that is added
therefore waits for the next norm, together with the bias of its last projection. Parts that read
the same x (parallel ones) take their norms first, and add their branches then. Letters: see
``layers``.
"""

from __future__ import annotations

import onnx_ir as ir

from .graph import Graph, Operator
from .layers import product


class Stream:
    """The stream x (B, S, D) of ``width`` D; ``epsilon`` is that of its norms.

    Every norm takes the name of its parameters and returns what it makes of x, (B, S, D).
    """

    def __init__(self, g: Graph, x: ir.Value, width: int, epsilon: float) -> None:
        self.g = g
        self.width = width
        self.epsilon = epsilon
        self._x = x
        self._branch: ir.Value | None = None
        self._bias: ir.Value | None = None

    @property
    def x(self) -> ir.Value:
        """The stream itself, for parts that read it without a norm; nothing may be waiting."""
        assert self._branch is None, "a branch waits for the next norm"
        return self._x

    def add(self, branch: ir.Value, bias: ir.Value | None = None) -> None:
        """x += branch (B, S, D) + bias (D,), done by the next norm."""
        if self._branch is not None:  # of a parallel part
            branch = self.g.Add(self._branch, branch, name="branches")
            if bias is not None and self._bias is not None:
                branch = self.g.Add(branch, bias, name="add_bias")
                bias = None
            bias = bias or self._bias
        self._branch, self._bias = branch, bias

    def add_linear(
        self, x: ir.Value, name: str, shape: tuple[int, int], *, bias: bool = False
    ) -> None:
        """x += ``linear(x, name, shape)``, done by the next norm, its bias included."""
        branch = product(self.g, x, name, shape)
        self.add(branch, self.g.parameter(f"{name}.bias", shape[:1]) if bias else None)

    def add_now(self, branch: ir.Value, name: str) -> None:
        """x += branch in a node ``name`` of its own, where no norm of the sum follows."""
        self._x = self.g.Add(self.x, branch, name=name)

    def rms_norm(self, name: str) -> ir.Value:
        """x / sqrt(mean(x²) + epsilon) · weight, of x with what was added."""
        g, weight = self.g, self.g.parameter(f"{name}.weight", (self.width,))
        if self._branch is None:
            name = f"{name}.rms_norm"
            return g.RMSNormalization(self._x, weight, axis=-1, epsilon=self.epsilon, name=name)
        return self._fused(g.SkipSimplifiedLayerNormalization, [weight], f"{name}.skip_rms_norm")

    def layer_norm(self, name: str, node: str | None = None) -> ir.Value:
        """(x - mean(x)) / sqrt(variance + epsilon) · weight + bias, of x with what was added."""
        g, shape = self.g, (self.width,)
        parameters = [g.parameter(f"{name}.{kind}", shape) for kind in ("weight", "bias")]
        if self._branch is None:
            node = node or f"{name}.layer_norm"
            return g.LayerNormalization(
                self._x, *parameters, axis=-1, epsilon=self.epsilon, name=node
            )
        return self._fused(g.SkipLayerNormalization, parameters, node or f"{name}.skip_layer_norm")

    def _fused(self, operator: Operator, parameters: list[ir.Value], name: str) -> ir.Value:
        """sum = x + branch + bias -> norm(sum); the stream goes on as the sum."""
        assert self._branch is not None, "nothing waits to be added"
        normed, _, _, self._x = operator(
            self._branch,
            self._x,
            *parameters,
            self._bias,
            outputs=4,
            epsilon=self.epsilon,
            name=name,
        )
        self._branch = self._bias = None
        return normed
