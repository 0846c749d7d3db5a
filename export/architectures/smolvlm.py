"""SmolVLM: the text model is Llama.

Source: ``modeling_smolvlm.py`` of Hugging Face transformers for where its tensors are.
"""

from __future__ import annotations

from ..wrapped import Wrapped

ARCHITECTURE = Wrapped(text={"llama": "llama"}, default="llama")
