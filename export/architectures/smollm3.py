"""SmolLM3: Llama's layers, every fourth of them without a rotation.

Sources: Bakouch et al. 2025 (SmolLM3); Yang et al. 2025 (arXiv 2501.18795, NoPE in some layers);
``modeling_smollm3.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from ..config_fields import DERIVED, require
from ..decoder_inputs import DecoderInputs
from ..graph import Graph
from ..layer_kinds import SLIDING, check_window, layer_kinds, used_window
from ..rotary import Rotary
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields, the window and which layers rotate; defaults are those of transformers."""

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 4
    tie_word_embeddings: bool = True
    use_sliding_window: bool = False
    sliding_window: int | None = None
    no_rope_layer_interval: int = 4
    kinds: tuple[str, ...] = field(default=(), metadata=DERIVED)  # one per layer
    rotates: tuple[bool, ...] = field(default=(), metadata=DERIVED)  # one per layer

    theta: ClassVar[float] = 2e6

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """As Llama; a window is for the layers that do not rotate, unless ``layer_types`` says."""
        config = used_window(config)
        fields = super().read(config)
        count, every = fields.num_hidden_layers, fields.no_rope_layer_interval
        rotates = config.get("no_rope_layers")
        if rotates is None:
            rotates = [int((i + 1) % every != 0) for i in range(count)]
        whole = isinstance(rotates, list) and len(rotates) == count
        known = whole and all(isinstance(x, int) and x in (0, 1) for x in rotates)
        require(known, "no_rope_layers", rotates, [f"{count} times 1 or 0"])
        window = fields.sliding_window
        kinds = layer_kinds(config, count, lambda i: window is not None and not rotates[i])
        check_window(kinds, window)
        return replace(fields, kinds=kinds, rotates=tuple(map(bool, rotates)))

    def window(self, layer: int) -> int | None:
        """That of the layers that have one."""
        return self.sliding_window if self.kinds[layer] == SLIDING else None

    def rotaries(
        self, g: Graph, config: dict[str, Any], inputs: DecoderInputs
    ) -> Sequence[Rotary | None]:
        """The same in every layer that has one."""
        made = super().rotaries(g, config, inputs)
        return [one if rotates else None for one, rotates in zip(made, self.rotates, strict=True)]


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config)
