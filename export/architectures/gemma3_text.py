"""Gemma 3 (text): Gemma 2's layers with norms over each head's queries and keys, and two rotations.

One layer in six sees everything; it rotates with one base, those that see a window with another.
Sources: Gemma Team 2025 (arXiv 2503.19786); ``modeling_gemma3.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from ..decoder_inputs import DecoderInputs
from ..errors import CheckpointError
from ..graph import Graph
from ..layer_kinds import FULL, SLIDING
from ..rope import DAMAGED, Rope
from ..rotary import Rotary, rotary
from ..strict_json import shown
from . import gemma2, qwen3


@dataclass(frozen=True)
class Config(gemma2.Config):
    """Fields of config.json that shape the graph; defaults are those of transformers."""

    vocab_size: int = 262208
    max_position_embeddings: int = 131072
    sliding_window_pattern: int = 6
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    theta: ClassVar[float] = 1e6

    @property
    def full_every(self) -> int:
        return self.sliding_window_pattern

    def rope(self, config: dict[str, Any]) -> Rope:
        """Of the layers that see everything."""
        return self._ropes(config)[FULL]

    def rotaries(
        self, g: Graph, config: dict[str, Any], inputs: DecoderInputs
    ) -> Sequence[Rotary | None]:
        """One for each kind of layer."""
        by_kind = {
            kind: rotary(g, rope, f"rope.{kind}", self.context_length, inputs)
            for kind, rope in self._ropes(config).items()
            if kind in self.kinds
        }
        return [by_kind[kind] for kind in self.kinds]

    def _ropes(self, config: dict[str, Any]) -> dict[str, Rope]:
        """The rotation of each kind of layer; newer configs list them by kind."""
        by_kind = config.get("rope_parameters")
        if isinstance(by_kind, dict) and by_kind.keys() & {FULL, SLIDING}:
            return {kind: self._listed(by_kind, kind) for kind in (FULL, SLIDING)}
        local = {"rope_theta": config.get("rope_local_base_freq", 10000.0)}
        return {FULL: super().rope(config), SLIDING: super().rope(local)}

    def _listed(self, by_kind: dict[str, Any], kind: str) -> Rope:
        if others := sorted(by_kind.keys() - {FULL, SLIDING}):
            raise CheckpointError(
                f"config.json: rope_parameters has a field {shown(others[0], 80)}, expected {FULL} "
                f"and {SLIDING}; {DAMAGED}"
            )
        theta = self.theta if kind == FULL else 10000.0
        own = by_kind.get(kind)
        return super().rope({"rope_theta": theta, "rope_parameters": own})


ARCHITECTURE = replace(
    gemma2.ARCHITECTURE,
    config=Config,
    block=partial(gemma2.block, project=qwen3.projections),
)
