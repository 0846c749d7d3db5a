"""Qwen2 and Qwen2.5: Llama's layers with biases on queries, keys and values.

Sources: Yang et al. 2024 (arXiv 2407.10671); ``modeling_qwen2.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..config_fields import DERIVED
from ..layer_kinds import SLIDING, check_window, layer_kinds, used_window
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
    kinds: tuple[str, ...] = field(default=(), metadata=DERIVED)  # one per layer

    @classmethod
    def read(cls, config: dict[str, Any]) -> Self:
        """As Llama; without ``layer_types``, those from ``max_window_layers`` on have the window.

        Unless it is used, whatever the config has as the window means nothing.
        """
        config = used_window(config)
        fields = super().read(config)
        window, first = fields.sliding_window, fields.max_window_layers
        kinds = layer_kinds(
            config, fields.num_hidden_layers, lambda i: window is not None and i >= first
        )
        check_window(kinds, window)
        return replace(fields, kinds=kinds)

    @property
    def qkv_bias(self) -> bool:
        return True

    def window(self, layer: int) -> int | None:
        """That of the layers that have one."""
        return self.sliding_window if self.kinds[layer] == SLIDING else None


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config)
