"""Mistral: Llama's layers, with attention that may be limited to a sliding window.

Sources: Jiang et al. 2023 (arXiv 2310.06825); ``modeling_mistral.py`` of Hugging Face transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..checkpoint import Checkpoint
from ..folder import DecoderShape
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


def tensor_shapes(config: dict[str, Any]) -> llama.Shapes:
    """Name and shape of every tensor that a checkpoint with this config.json has."""
    fields = Config.read(config)
    return llama.decoder_shapes(fields, llama.layer_shapes(fields))


def build(checkpoint: Checkpoint) -> tuple[ir.Model, DecoderShape]:
    """The float32 model of ``checkpoint`` and its sizes; see ``llama.build``."""
    config = Config.read(checkpoint.config)
    return llama.build_decoder(checkpoint, config, llama.layer_shapes(config))
