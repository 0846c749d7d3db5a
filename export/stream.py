"""The residual stream of a decoder: what every part of a layer reads, and adds its branch to.

    x = stream.rms_norm("input_layernorm")
    stream.add(branch)                               # only remembered
    x = stream.rms_norm("post_attention_layernorm")  # adds it and norms the sum

Parts that read the same x (parallel ones) take their norms first, and add their branches then; so a
branch that is added waits for the next norm, together with the bias of its last projection. Adds
and norms are nodes of their own: the kernels that fuse them are the slower ones (benchmarks/NOTES).
Letters: see ``layers``.
"""

from __future__ import annotations

import onnx_ir as ir

from .graph import Graph
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
        weight = self.g.parameter(f"{name}.weight", (self.width,))
        x = self._summed(name)
        return self.g.RMSNormalization(
            x, weight, axis=-1, epsilon=self.epsilon, name=f"{name}.rms_norm"
        )

    def layer_norm(self, name: str) -> ir.Value:
        """(x - mean(x)) / sqrt(variance + epsilon) · weight + bias, of x with what was added."""
        shape = (self.width,)
        parameters = [self.g.parameter(f"{name}.{kind}", shape) for kind in ("weight", "bias")]
        x = self._summed(name)
        return self.g.LayerNormalization(
            x, *parameters, axis=-1, epsilon=self.epsilon, name=f"{name}.layer_norm"
        )

    def _summed(self, name: str) -> ir.Value:
        """x, to which what waits has been added, in nodes of the norm ``name``."""
        if self._branch is not None:
            if self._bias is not None:
                self._branch = self.g.Add(self._branch, self._bias, name=f"{name}.add_bias")
            self._x = self.g.Add(self._x, self._branch, name=f"{name}.add")
            self._branch = self._bias = None
        return self._x
