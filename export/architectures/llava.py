"""LLaVA: the text model is Llama, Mistral or Qwen2.

Source: ``modeling_llava.py`` of Hugging Face transformers for where its tensors are.
"""

from __future__ import annotations

from ..wrapped import Wrapped

ARCHITECTURE = Wrapped(
    text={"llama": "llama", "mistral": "mistral", "qwen2": "qwen2"}, default="llama"
)
