"""Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values.

Sources: Yang et al. 2024 (arXiv 2407.10671); ``modeling_qwen2.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..config_fields import refuse_unless
from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields and the window of the later layers; defaults are those of transformers."""

    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28

    def check(self, config: dict[str, Any]) -> None:
        """As Llama; the windows must be those that ``max_window_layers`` says."""
        super().check(config)
        kinds = [
            "full_attention" if self.window(i) is None else "sliding_attention"
            for i in range(self.num_hidden_layers)
        ]
        if config.get("layer_types") != kinds:
            refuse_unless(config, "layer_types", None)

    @property
    def qkv_bias(self) -> bool:
        return True

    def window(self, layer: int) -> int | None:
        """Layers from ``max_window_layers`` on see the window only, if there is one at all."""
        windowed = self.use_sliding_window and layer >= self.max_window_layers
        return self.sliding_window if windowed else None


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config)
