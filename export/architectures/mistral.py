"""Mistral: Llama's layers, with attention that may be limited to a sliding window.

Sources: Jiang et al. 2023 (arXiv 2310.06825); ``modeling_mistral.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import llama


@dataclass(frozen=True)
class Config(llama.Config):
    """Llama's fields and the window; defaults are those of transformers."""

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def window(self, layer: int) -> int | None:
        """The same in every layer."""
        return self.sliding_window


ARCHITECTURE = replace(llama.ARCHITECTURE, config=Config)
