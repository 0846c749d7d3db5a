"""The contract of every pass over a graph: it rewrites a model in place and says what it did.

outcome = Rotation().apply(model)
outcome.skipped["layers.0.mlp.down_proj.weight"]      # "1000 input features are no multiple …"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir


@dataclass
class Outcome:
    """What a pass did, by name of the weight or node it was about."""

    changed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # name -> the reason


class GraphPass(Protocol):
    """One change of a graph; weights stay lazy."""

    def apply(self, model: ir.Model) -> Outcome:
        """Rewrites ``model`` in place."""
